"""Random requests to OpenAI's routes: no internal error, no 409, and every refusal in the same format."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from crucible_trio.apis.openai.chat import messages as chat_messages
from crucible_trio.apis.openai.chat import requests as chat
from crucible_trio.apis.openai.responses import input as responses_input
from crucible_trio.apis.openai.responses import requests as responses
from crucible_trio.content import Reasoning
from crucible_trio.engine import Capabilities
from crucible_trio.request import Sampling
from crucible_trio.testing import CallTool

FIELDS = [
    name
    for fields in (
        chat.BODY,
        chat_messages.MESSAGE,
        responses.BODY,
        responses_input.MESSAGE,
        responses.REASONING,
    )
    for name in (*fields.shape.__struct_fields__, *fields.harmless, *fields.refused)
]
WORDS = [
    "function",
    "namespace",
    "custom",
    "json_schema",
    "required",
    "scripted",
    "scripted:deep",
    "user",
    "system",
    "text",
    "input_text",
    "message",
    "reasoning",
    "auto",
    "high",
    "",
]

texts = st.one_of(st.sampled_from(WORDS), st.text(max_size=20))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(FIELDS), texts), inner, max_size=4),
    ),
    max_leaves=12,
)
parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "input_text", "output_text"]), "text": texts})
contents = st.one_of(st.just("Why?"), texts, st.lists(parts, max_size=3), values)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant"]), "content": contents},
    optional={"name": texts, "id": texts},
)
conversations = st.lists(messages, min_size=1, max_size=3)
tools = st.recursive(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["function", "custom", "web_search"]), "name": texts},
        optional={"parameters": values, "format": values, "description": values, "strict": values},
    ),
    lambda inner: st.fixed_dictionaries(
        {"type": st.just("namespace"), "name": texts, "tools": st.lists(inner, max_size=3)}
    ),
    max_leaves=4,
)
items = st.one_of(
    messages,
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(
                [
                    "additional_tools",
                    "custom_tool_call",
                    "custom_tool_call_output",
                    "function_call",
                    "function_call_output",
                    "item_reference",
                    "message",
                    "reasoning",
                    "web_search_call",
                ]
            )
        },
        optional={
            "arguments": texts,
            "call_id": texts,
            "content": contents,
            "encrypted_content": texts,
            "id": texts,
            "input": texts,
            "name": texts,
            "namespace": texts,
            "output": contents,
            "status": st.sampled_from(["completed", "incomplete"]),
            "summary": contents,
            "tools": st.lists(tools, max_size=2),
        },
    ),
)
agent_turns = st.builds(
    lambda turn, tools, more: {"input": turn, "tools": tools} | more,
    st.lists(items, max_size=4),
    st.lists(tools, max_size=3),
    st.dictionaries(st.sampled_from(FIELDS), values, max_size=2),
)
# The required field of each API, usually valid, and up to two other fields.
asks = {
    path: st.builds(
        lambda name, content, more: {name: content} | more,
        st.just(name),
        st.one_of(conversations, conversations, contents),
        st.one_of(st.just({}), st.dictionaries(st.sampled_from(FIELDS), values, max_size=2)),
    )
    for path, name in (("/v1/chat/completions", "messages"), ("/v1/responses", "input"))
}


def encoded(asked: st.SearchStrategy[Any]) -> st.SearchStrategy[bytes]:
    good = asked.map(lambda value: json.dumps(value).encode())
    junk = st.builds(
        lambda body, at, more: body[:at] + more + body[at:], good, st.integers(0, 80), st.binary(max_size=6)
    )
    return st.one_of(good, good, junk)


# `{id}` becomes the id of a finished response.
ids = st.one_of(
    st.sampled_from(["{id}", "resp_" + "a" * 22, "%00", "%FF", "..", "{id}."]), st.text("aé%/?#&=", max_size=9)
)
queries = st.lists(
    st.builds(
        "{}={}".format,
        st.sampled_from(["stream", "starting_after", "include", "include[]", "x", ""]),
        st.sampled_from(["true", "false", "0", "3", "9" * 30, "-1", "%FF", "", "reasoning.encrypted_content"]),
    ),
    max_size=3,
).map("&".join)
paths = st.one_of(
    st.sampled_from(["/v1/chat/completions", "/v1/responses", "/v1/chat", "/v1/responses/"]),
    st.builds("/v1/responses/{}?{}".format, st.just("{id}"), queries),
    st.builds("/v1/responses/{}{}?{}".format, ids, st.sampled_from(["", "", "/cancel", "/input_items"]), queries),
    st.builds("/v1/models/x{}".format, ids),
)
starts = st.one_of(
    *(st.tuples(st.just("POST"), st.just(path), encoded(asked)) for path, asked in asks.items()),
    st.tuples(st.just("POST"), st.just("/v1/responses"), encoded(agent_turns)),
)
others = st.tuples(
    st.sampled_from(["GET", "GET", "POST", "DELETE", "HEAD", "OPTIONS"]),
    paths,
    st.one_of(st.just(b""), encoded(values), st.binary(max_size=60)),
)
requests = st.one_of(starts, starts, others)

DEEP_JSON = b'{"messages":[{"role":"user","content":' + b"[" * 20_000 + b"]" * 20_000 + b"}]}"
NAMED_DEEPLY = b'{"input":"a","' + b"x" * 100_000 + b'":1}'


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(batch=st.lists(requests, min_size=1, max_size=5))
@example(batch=[("POST", "/v1/chat/completions", DEEP_JSON), ("POST", "/v1/responses", DEEP_JSON)])
@example(batch=[("POST", "/v1/chat/completions", NAMED_DEEPLY), ("POST", "/v1/responses", NAMED_DEEPLY)])
@example(batch=[("POST", "/v1/responses", b'{"input":"a","max_output_tokens":1e999}')])
@example(batch=[("POST", "/v1/responses", b'{"input":"a","max_output_tokens":1' + b"0" * 5000 + b"}")])
@example(batch=[("POST", "/v1/chat/completions", b'{"messages":[{"role":"user","content":"\\ud800"}]}')])
@example(batch=[("POST", "/v1/responses", b'{"input":"a","text":' + b'{"format":' * 5000 + b"1" + b"}" * 5001)])
def test_no_request_causes_an_internal_error(open_api: Any, scripted: Any, batch: list[tuple[str, str, bytes]]) -> None:
    able = Capabilities.of(Capabilities.__dataclass_fields__, Sampling.__struct_fields__)

    async def send_all() -> None:
        steps = (Reasoning("Hm", 0), CallTool("function"), "a")
        async with open_api(engine=scripted(*steps, capabilities=able)) as api:
            finished = (await api.post("/v1/responses", {"input": "Why?"})).json["id"]
            for method, target, body in batch:
                target = target.replace("{id}", finished)
                answer = await api.ask(method, target, body, Content_Type="application/json")
                assert answer.status is not None
                assert answer.status < 500
                if answer.status >= 400:
                    assert answer.status != 409
                    assert method in {"HEAD", "OPTIONS"} or answer.error["code"]
                assert not answer.broken

    trio.run(send_all, clock=MockClock(autojump_threshold=0))
