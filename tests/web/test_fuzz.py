"""Random requests to every route: no status is 500 or more, and all errors have the same JSON shape."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crucible_trio.content import Reasoning

FIELDS = [
    "input",
    "mode",
    "model",
    "max_output_tokens",
    "sampling",
    "trace",
    "on_disconnect",
    "grace_seconds",
    "deadlines",
    "temperature",
    "stop",
    "seed",
    "idle_seconds",
    "role",
    "content",
]
WORDS = [
    "deep",
    "standard",
    "none",
    "final",
    "segments",
    "pause",
    "continue",
    "cancel",
    "user",
    "scripted",
    "event",
    "k",
]
# `{id}` becomes the id of a finished stream.
IDS = ["{id}", "{id}.0", "{id}.1", "{id}.3", "{id}.4", "str_" + "a" * 22, "str_" + "a" * 22 + ".1", ".", "..", ""]

texts = st.one_of(st.sampled_from(WORDS + IDS), st.text(max_size=20))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(FIELDS), texts), inner, max_size=4),
    ),
    max_leaves=12,
)
objects = st.fixed_dictionaries(
    {"input": st.one_of(st.just("Why?"), values)}, optional=dict.fromkeys(FIELDS[1:9], values)
)
encoded = st.one_of(values, objects, objects).map(lambda value: json.dumps(value).encode())
bodies = st.one_of(
    encoded,
    st.binary(max_size=60),
    # A good body with random bytes inserted.
    st.builds(lambda body, at, junk: body[:at] + junk + body[at:], encoded, st.integers(0, 80), st.binary(max_size=6)),
    st.builds(lambda body, at: body[:at], encoded, st.integers(0, 80)),
    st.lists(st.binary(max_size=10), max_size=5),
)
# The characters that a header can hold. A server refuses others before it calls the application.
header_texts = st.one_of(
    texts.map(lambda text: "".join(c for c in text if c not in "\r\n\0" and ord(c) < 256)),
    st.text(st.characters(min_codepoint=1, max_codepoint=255, exclude_characters="\r\n"), max_size=30),
)
headers = st.fixed_dictionaries(
    {
        "Content_Type": st.sampled_from(
            ["application/json"] * 4 + ["text/plain", "", ";", "application/json; charset=x"]
        )
    },
    optional={
        "Accept": st.one_of(
            st.sampled_from(["text/event-stream", "*/*", "text/event-stream;q=0", "text/event-stream;q=x"]),
            header_texts,
        ),
        "Last_Event_Id": st.one_of(st.sampled_from(IDS), header_texts),
        "Idempotency_Key": st.one_of(st.just("k"), header_texts),
        "Authorization": header_texts,
        "Content_Length": st.one_of(header_texts, st.integers().map(str)),
        "Host": st.one_of(st.sampled_from(["localhost", "[::1]:80", "..", "x" * 64]), header_texts),
        "Origin": st.one_of(st.just("http://localhost"), header_texts),
        "Sec_Fetch_Site": header_texts,
        "Transfer_Encoding": header_texts,
        "Content_Encoding": header_texts,
        "Cookie": header_texts,
        "Range": header_texts,
        "If_None_Match": header_texts,
        "X_Forwarded_Host": header_texts,
    },
)
parameters = st.one_of(
    st.sampled_from(["last_event_id", "trace", "done", "token", "prompt", "mode", "idempotency_key"]), texts
)
escaped = st.one_of(
    st.sampled_from(IDS),
    texts.map(lambda text: quote(text, safe="")),
    st.binary(max_size=6).map(lambda raw: quote(raw, safe="")),
)
queries = st.lists(st.tuples(parameters.map(lambda name: quote(name, safe="")), escaped).map("=".join), max_size=4).map(
    "&".join
)
segments = st.one_of(
    st.sampled_from(["{id}", "str_" + "a" * 22]),
    st.text(st.characters(codec="utf-8", exclude_characters="/?"), max_size=20),
)
paths = st.one_of(
    st.sampled_from(
        ["/v1/streams"] * 3 + ["/v1/generate"] * 3 + ["/v1/models", "/healthz", "/readyz", "/metrics", "/"]
    ),
    st.builds("/v1/streams/{}{}".format, segments, st.sampled_from(["", "/events", "/events", "/cancel", "/", "/x"])),
    st.lists(segments, max_size=4).map(lambda parts: "/" + "/".join(parts)),
)
requests = st.tuples(
    st.sampled_from(["GET", "POST", "POST", "DELETE", "HEAD", "OPTIONS", "PUT"]), paths, queries, bodies, headers
)


@pytest.mark.slow
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(batch=st.lists(requests, min_size=1, max_size=5), keys=st.booleans())
def test_no_request_causes_a_server_error(open_api, run_virtually, batch, keys) -> None:
    async def send_all() -> None:
        async with open_api(Reasoning("Hm", 0), "a", keys={"alice": "key"} if keys else {}) as api:
            stream = (await api.stream(Authorization="Bearer key")).stream_id
            for method, path, query, body, given_headers in batch:
                target = f"{path}?{query}".replace("{id}", stream)
                filled = {name: value.replace("{id}", stream) for name, value in given_headers.items()}
                if keys:
                    filled.setdefault("Authorization", "Bearer key")
                answer = await api.ask(method, target, body, **filled)
                assert answer.status < 500
                assert answer.status != 409
                if answer.status >= 400:
                    assert answer.json["error"]["code"]  # in the shape of the API that has the path
                assert not answer.cut_its_own_end

    run_virtually(send_all)
