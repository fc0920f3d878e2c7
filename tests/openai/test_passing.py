"""Requests that go on to an upstream as they are, and which headers and fields of a client reach an upstream."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.engine import PassedPath, PassesOn, passing_engines
from crucible_trio.engines.router import RouterEngine
from crucible_trio.engines.upstream import open_upstream, retries
from crucible_trio.engines.upstream import response as upstream_response
from crucible_trio.testing import ScriptedEngine

from .upstream_cases import CANARY, CASES, Upstream, UpstreamCase, error, open_scripted_upstream, response

KEY = "sk-very-secret-1234"
ASKED = "a question that nobody may log"
VECTORS = {"object": "list", "data": [{"index": 0, "embedding": [0.5, -1.0]}], "usage": {"prompt_tokens": 1}}
GOOD = response(200, VECTORS, "X-Upstream: secret", "Set-Cookie: a=b")
# Headers that a proxy or a gateway might pass on.
ODD_HEADERS = {
    "Authorization": "Bearer client-key",
    "Api-Key": "client-key",
    "Cookie": "session=client",
    "X-Forwarded-For": "client",
    "OpenAI-Organization": "client",
    "X-Stainless-Lang": "client",
    "Traceparent": "client",
    "User-Agent": "client",
    "Accept-Language": "client",
    "Idempotency-Key": "client",
    "X-Odd": "client",
}


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "NO_RESPONSE_DELAYS", (0.001, 0.001))


@asynccontextmanager
async def passing(
    serving: Callable[..., Any], answer: bytes | None = GOOD, *, extra_body: Any = None, **settings: Any
) -> AsyncIterator[tuple[Upstream, httpx.AsyncClient, Any]]:
    """A server in front of a scripted upstream, and a client of the server."""
    async with (
        open_scripted_upstream(answer, stays_open=answer == b"") as upstream,
        open_upstream(upstream.url, model="m", key=KEY, extra_body=extra_body) as engine,
        serving(engine, **{"hold_seconds": 30} | settings) as served,
        httpx.AsyncClient(base_url=served.base_url, timeout=20, verify=False) as client,
    ):
        yield upstream, client, served


# The requests that go on


async def test_embeddings_and_completions_go_on_as_they_are(serving: Any) -> None:
    async with passing(serving, openai_models={"text-embedding-3-small": "m"}) as (upstream, client, served):
        asked = {"input": [ASKED, "ü"], "model": "text-embedding-3-small", "dimensions": 2, "x": {"deep": [1, None]}}
        answer = await client.post("/embeddings", json=asked)
        assert (answer.status_code, answer.json()) == (200, VECTORS)
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert not {"x-upstream", "set-cookie"} & set(answer.headers)
        asked = {"prompt": ASKED, "model": "m", "max_tokens": 3, "stream": False, "stream_options": None}
        assert (await client.post("/completions", json=asked)).json() == VECTORS
        assert await served.pipeline.list() == []
    lines, headers, bodies = zip(*upstream.requests, strict=True)
    assert lines == ("POST /v1/embeddings HTTP/1.1", "POST /v1/completions HTTP/1.1")
    assert [json.loads(body) for body in bodies] == [
        {"input": [ASKED, "ü"], "model": "m", "dimensions": 2, "x": {"deep": [1, None]}},
        {"prompt": ASKED, "model": "m", "max_tokens": 3},
    ]
    for sent in headers:
        assert sent["authorization"] == f"Bearer {KEY}"
        assert sent["accept"] == "application/json"


async def test_the_sdk_gets_embeddings_and_completions(serving: Any, with_sync_client: Any) -> None:
    def use(client: openai.OpenAI) -> None:
        assert client.embeddings.create(model="m", input="Hi", encoding_format="float").data[0].embedding == [0.5, -1.0]

    async with passing(serving) as (_, _, served):
        await with_sync_client(served, use)


@pytest.mark.parametrize("path", ["/embeddings", "/completions"])
@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"input": "a", "model": "m", "stream": True}, 400, "unsupported_parameter", "stream"),
        ({"input": "a", "model": "m", "stream": "yes"}, 400, "unsupported_parameter", "stream"),
        ({"input": "a"}, 400, "invalid_request", "model"),
        ({"input": "a", "model": 7}, 400, "invalid_request", "model"),
        ({"input": "a", "model": "other"}, 404, "model_not_found", "model"),
        ([], 400, "invalid_request", None),
        ({"model": "m", "input": json.loads("[" * 101 + "]" * 101)}, 400, "invalid_request", None),
        ({"model": "m", "input": "x" * 3000}, 413, "body_too_large", None),
    ],
)
async def test_a_request_that_cannot_go_on_is_refused(
    path: str, body: Any, status: int, code: str, param: str | None, serving: Any
) -> None:
    async with passing(serving, max_request_bytes=2000) as (upstream, client, _):
        answer = await client.post(path, json=body)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
        assert (await client.post(f"{path}?x=1", json=body)).status_code == 400
        assert (await client.get(path)).status_code == 405
    assert upstream.requests == []


async def test_a_key_is_required_if_keys_are_configured(serving: Any) -> None:
    async with passing(serving, keys={"alice": "key"}) as (upstream, client, _):
        asked = {"input": "a", "model": "m"}
        answer = await client.post("/embeddings", json=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert upstream.requests == []
        answer = await client.post("/embeddings", json=asked, headers={"Authorization": "Bearer key"})
        assert answer.status_code == 200


@pytest.mark.parametrize("path", ["/embeddings", "/completions"])
@pytest.mark.parametrize("case", [case for case in CASES if not case.stays_open], ids=lambda case: case.name)
async def test_a_failure_has_the_same_status_as_that_of_a_stream(
    path: str, case: UpstreamCase, serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "crucible_trio"):
        async with passing(serving, case.answer) as (upstream, client, _):
            answer = await client.post(path, json={"input": ASKED, "model": "m"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (case.status, case.code)
    assert answer.headers.get("retry-after") == case.retry_after
    assert (CANARY in error["message"]) == case.said
    assert len(upstream.requests) == case.attempts
    logged = [record.getMessage() for record in caplog.records]
    assert logged
    assert not [line for line in logged if CANARY in line or ASKED in line or KEY in line]


async def test_an_answer_that_is_cut_or_too_long_is_an_error(serving: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"input": "a", "model": "m"}
    async with passing(serving, GOOD.replace(b"Content-Length: ", b"Content-Length: 9")) as (upstream, client, _):
        answer = await client.post("/embeddings", json=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "upstream_ended_early")
        assert len(upstream.requests) == 1
        monkeypatch.setattr(upstream_response, "MAX_PASSED_BODY", 20)
        answer = await client.post("/embeddings", json=asked)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "upstream_invalid_response")


async def test_a_deadline_is_an_error_that_no_client_repeats(serving: Any) -> None:
    async with passing(serving, b"", total_seconds=2.0) as (upstream, client, _):
        answer = await client.post("/embeddings", json={"input": "a", "model": "m"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "total_deadline")
        assert answer.headers["x-should-retry"] == "false"
        assert len(upstream.requests) == 1


# The engine


class PassingEngine(ScriptedEngine):
    """An engine that passes on, and waits until it is cancelled.

    Attributes:
        passed: What it was asked to pass on.
        live: How many calls have not ended.
    """

    def __init__(self) -> None:
        super().__init__(name="passing")
        self.passed: list[tuple[str, Any]] = []

    async def pass_on(self, path: PassedPath, fields: Any, *, has_fallback: bool = False) -> bytes:
        self.passed.append((path, fields))
        self.live += 1
        try:
            if fields.get("input") != "wait":
                return b"{}"
            await trio.sleep_forever()
            raise AssertionError
        finally:
            self.live -= 1


async def test_only_an_engine_that_passes_on_has_these_paths(open_api: Callable, autojump_clock: MockClock) -> None:
    engine = PassingEngine()
    assert isinstance(engine, PassesOn)
    assert not isinstance(ScriptedEngine(), PassesOn)
    async with open_api(engine=RouterEngine([ScriptedEngine("a"), engine])) as api:
        answer = await api.post("/v1/embeddings", {"input": "a", "model": "scripted"})
        assert (answer.status, answer.error["code"]) == (404, "not_found")
        answer = await api.post("/v1/embeddings", {"input": "a", "model": "passing"})
        assert (answer.status, answer.json) == (200, {})
        assert engine.passed == [("embeddings", {"input": "a", "model": "passing"})]


async def test_a_client_that_leaves_stops_the_request(open_api: Callable, autojump_clock: MockClock) -> None:
    engine = PassingEngine()
    async with open_api(engine=engine) as api:
        async with api.open("POST", "/v1/embeddings", {"input": "wait", "model": "passing"}):
            await wait_all_tasks_blocked()
            assert engine.live == 1
        await wait_all_tasks_blocked()
        assert engine.live == 0


async def test_a_draining_server_passes_nothing_on(open_api: Callable, autojump_clock: MockClock) -> None:
    engine = PassingEngine()
    async with open_api(engine=engine) as api:
        await api.pipeline.drain()
        answer = await api.post("/v1/embeddings", {"input": "a", "model": "passing"})
        assert (answer.status, answer.error["code"]) == (503, "draining")
        assert engine.passed == []


# The headers and fields that reach an upstream, on every route

ROUTES = [
    ("/chat/completions", {"messages": [{"role": "user", "content": ASKED}]}),
    ("/chat/completions", {"messages": [{"role": "user", "content": ASKED}], "stream": True}),
    ("/responses", {"input": ASKED}),
    ("/responses", {"input": ASKED, "stream": True}),
    ("/streams", {"input": ASKED}),
    ("/embeddings", {"input": ASKED}),
    ("/completions", {"prompt": ASKED}),
]


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_no_header_of_a_client_reaches_an_upstream(path: str, body: Any, serving: Any) -> None:
    async with passing(serving, keys={"alice": "client-key"}) as (upstream, client, served):
        await client.post(path, json=body | {"model": "m"}, headers=ODD_HEADERS)
        for stream in await served.pipeline.list(owner="alice"):
            await stream.log.wait_finished()
    [(line, headers, _)] = upstream.requests
    assert "client" not in line + "".join(headers.values())
    assert headers.pop("authorization") == f"Bearer {KEY}"
    allowed = {"host", "accept", "accept-encoding", "connection", "user-agent", "content-type", "content-length"}
    assert headers.keys() <= allowed


@pytest.mark.parametrize(("path", "body"), ROUTES)
async def test_no_field_of_a_client_replaces_the_operators(path: str, body: Any, serving: Any) -> None:
    extra = {"temperature": 0.1, "max_tokens": 7, "provider": {"only": ["here"]}, "model": "x", "stream": "x"}
    is_passed = path in {"/embeddings", "/completions"}
    theirs: dict[str, Any] = {"temperature": 0.9, "max_tokens": 99}
    if path == "/streams":
        theirs = {"sampling": {"temperature": 0.9}, "max_output_tokens": 99}
    if path == "/responses":
        theirs = {"temperature": 0.9, "max_output_tokens": 99}
    if is_passed:
        theirs["provider"] = {"only": ["there"]}
        extra.pop("stream")
    async with passing(serving, extra_body=extra) as (upstream, client, served):
        answer = await client.post(path, json=body | {"model": "m"} | theirs)
        for stream in await served.pipeline.list():
            await stream.log.wait_finished()
        assert answer.status_code < 500
    [(_, _, sent)] = upstream.requests
    fields = json.loads(sent)
    assert {name: fields[name] for name in ("temperature", "max_tokens", "provider", "model")} == {
        "temperature": 0.1,
        "max_tokens": 7,
        "provider": {"only": ["here"]},
        "model": "m",
    }
    assert fields.get("stream") is (None if is_passed else True)
    assert is_passed or fields["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(("path", "body"), ROUTES)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(path: str, body: Any, status: int, serving: Any) -> None:
    async with passing(serving, response(status, {}, "Location: /v1/elsewhere")) as (upstream, client, served):
        answer = await client.post(path, json=body | {"model": "m"})
        if path == "/streams":
            for stream in await served.pipeline.list():
                await stream.log.wait_finished()
                assert stream.snapshot().error.code == "upstream_rejected"
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "upstream_rejected")
    assert len(upstream.requests) == 1


# Several upstreams


@pytest.mark.parametrize(
    "first",
    [None, response(404, error()), response(429, error()), response(500, error())],
    ids=["no answer", "404", "429", "500"],
)
async def test_the_next_upstream_of_the_model_is_asked_once_the_first_has_failed(
    first: bytes | None, open_api: Callable
) -> None:
    async with (
        open_scripted_upstream(first) as one,
        open_scripted_upstream(response(200, {"data": []})) as two,
        open_upstream(one.url, name="one", model="m") as first_engine,
        open_upstream(two.url, name="two", model="m") as second_engine,
        open_api(engine=RouterEngine([ScriptedEngine(models=["m"]), first_engine, second_engine])) as api,
    ):
        answer = await api.post("/v1/embeddings", {"model": "m", "input": "x"})
        assert (answer.status, answer.json) == (200, {"data": []})
        assert (len(one.requests), len(two.requests)) == (1, 1)


@pytest.mark.parametrize(("first", "second", "status"), [(400, 200, 400), (503, 429, 429)])
async def test_an_error_that_blames_the_request_and_the_last_one_go_to_the_client(
    first: int, second: int, status: int, open_api: Callable
) -> None:
    async with (
        open_scripted_upstream(response(first, error())) as one,
        open_scripted_upstream(response(second, error())) as two,
        open_upstream(one.url, name="one", model="m") as first_engine,
        open_upstream(two.url, name="two", model="m") as second_engine,
        open_api(engine=RouterEngine([first_engine, second_engine])) as api,
    ):
        answer = await api.post("/v1/completions", {"model": "m", "prompt": "x"})
        assert answer.status == status
        assert len(one.requests) == 1


def test_an_upstream_that_is_down_is_asked_last() -> None:
    down, up = PassingEngine(), PassingEngine()
    down.info = replace(down.info, name="down", is_up=False)
    other = ScriptedEngine(models=["passing"])
    assert passing_engines(RouterEngine([down, other, up]), "passing") == [up, down]
