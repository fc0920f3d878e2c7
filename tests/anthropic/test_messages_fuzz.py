"""Random requests to the Messages API: no internal error, no 409, and every refusal in the same form."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from crucible_trio.apis.anthropic import requests as messages
from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities
from crucible_trio.request import Sampling
from crucible_trio.testing import CallTool

PATH = "/v1/messages"
FIELDS = [
    name
    for fields in (messages.BODY, messages.THINKING, messages.OUTPUT_CONFIG)
    for name in (*fields.shape.__struct_fields__, *fields.harmless, *fields.refused)
]
BLOCKS = [
    "text",
    "image",
    "document",
    "search_result",
    "thinking",
    "redacted_thinking",
    "tool_use",
    "tool_result",
    "tool_reference",
    "tool_addition",
    "server_tool_use",
]
IN_BLOCKS = [
    "text",
    "source",
    "thinking",
    "signature",
    "id",
    "name",
    "input",
    "tool_use_id",
    "content",
    "is_error",
    "tool",
    "title",
    "citations",
    "data",
    "type",
    "url",
    "media_type",
]
texts = st.one_of(st.sampled_from(["scripted", "user", "auto", "tool", "enabled", "base64", ""]), st.text(max_size=20))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(FIELDS + IN_BLOCKS), texts), inner, max_size=4),
    ),
    max_leaves=12,
)
blocks = st.builds(
    lambda kind, more: {"type": kind} | more,
    st.one_of(st.sampled_from(BLOCKS), values),
    st.dictionaries(st.sampled_from(IN_BLOCKS), st.one_of(texts, values), max_size=4),
)
contents = st.one_of(st.just("Why?"), texts, st.lists(blocks, max_size=4), values)
turns = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]), "content": contents})
tools = st.fixed_dictionaries(
    {"name": texts, "input_schema": st.one_of(st.just({"type": "object"}), values)},
    optional={"type": texts, "description": values, "strict": values},
)
asks = st.builds(
    lambda turns, tools, more: {"max_tokens": 9, "messages": turns, "tools": tools} | more,
    st.one_of(st.lists(turns, min_size=1, max_size=3), values),
    st.lists(tools, max_size=2),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=2),
)
bodies = st.one_of(asks.map(lambda ask: json.dumps(ask).encode()), st.binary(max_size=60))
ids = st.one_of(
    st.sampled_from(["{id}", "{id}.0", "{id}.3", "{id}.999", "msg_" + "a" * 22, ".."]), st.text("aé%.?", max_size=9)
)
requests = st.one_of(
    st.tuples(st.just("POST"), st.just(PATH), bodies, st.just("")),
    st.tuples(st.just("POST"), st.just(PATH), bodies, ids),
    st.tuples(
        st.sampled_from(["GET", "HEAD", "POST", "DELETE", "OPTIONS"]),
        st.builds((PATH + "/{}/events").format, ids),
        st.just(b""),
        ids,
    ),
)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(batch=st.lists(requests, min_size=1, max_size=5))
@example(batch=[("POST", PATH, b'{"max_tokens":9,"messages":' + b"[" * 20_000 + b"]" * 20_000 + b"}", "")])
@example(batch=[("POST", PATH, b'{"max_tokens":1e999,"messages":[{"role":"user","content":"a"}]}', "")])
@example(batch=[("POST", PATH, b'{"max_tokens":9,"messages":[{"role":"user","content":"\\ud800"}]}', "")])
def test_no_request_causes_an_internal_error(
    open_api: Any, scripted: Any, batch: list[tuple[str, str, bytes, str]]
) -> None:
    able = Capabilities.of(Capabilities.__dataclass_fields__, Sampling.__struct_fields__)

    async def send_all() -> None:
        async with open_api(engine=scripted(Reasoning("Hm", 0), CallTool("now"), "a", capabilities=able)) as api:
            ask = {"max_tokens": 9, "messages": [{"role": "user", "content": "Why?"}]}
            finished = (await api.post(PATH, ask)).json["id"]
            for method, target, body, last_id in batch:
                headers = {"Last_Event_Id": last_id.replace("{id}", finished)} if last_id.isascii() else {}
                answer = await api.ask(
                    method, target.replace("{id}", finished), body, Content_Type="application/json", **headers
                )
                assert answer.status is not None
                assert answer.status < 500
                if answer.status >= 400:
                    assert answer.status != 409
                    assert method in {"HEAD", "OPTIONS"} or answer.json["error"]["message"]
                assert not answer.broken

    trio.run(send_all, clock=MockClock(autojump_threshold=0))
