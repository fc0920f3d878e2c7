"""OpenAI's SDK in front of every way in which an upstream can answer: the error, and the number of requests."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
import trio

from crucible_trio.engines.upstream import open_upstream, retries

from .upstream_cases import CANARY, CASES, UpstreamCase, open_scripted_upstream, response

KEY = "sk-very-secret-1234"
ASKED = "a question that nobody may log"
MAX_RETRIES = 2  # the SDK's default


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "NO_RESPONSE_DELAYS", (0.001, 0.001))
    # A server that repeats after a status would be slow here, and its requests would be counted.
    monkeypatch.setattr(retries, "RETRY_DELAYS", (0.001, 0.001))


class CountingClient(openai.OpenAI):
    """Counts its requests and does not wait between them.

    Attributes:
        sent: How many requests it has sent.
    """

    def __init__(self, base_url: str) -> None:
        self.sent = 0
        count = httpx.Client(event_hooks={"request": [self._count]}, timeout=30, verify=False)
        super().__init__(base_url=base_url, api_key="none", max_retries=MAX_RETRIES, http_client=count)

    def _count(self, _: httpx.Request) -> None:
        self.sent += 1

    def _sleep_for_retry(self, **_: Any) -> None:
        pass


def chat(client: openai.OpenAI, *, stream: bool) -> None:
    messages: Any = [{"role": "user", "content": ASKED}]
    answer = client.chat.completions.create(model="m", messages=messages, stream=stream)
    if stream:
        list(answer)


def responses(client: openai.OpenAI, *, stream: bool) -> None:
    answer: Any = client.responses.create(model="m", input=ASKED, stream=stream)
    if stream and (failed := list(answer)[-1].response.error):  # the SDK does not raise for this event
        raise openai.APIError(failed.message, httpx.Request("POST", "http://x"), body={"code": failed.code})


def background(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="m", input=ASKED, background=True)
    while answer.status in {"queued", "in_progress"}:
        answer = client.responses.retrieve(answer.id)
    failed = answer.error
    assert failed is not None
    raise openai.APIError(failed.message, httpx.Request("POST", "http://x"), body={"code": failed.code})


async def ask(served: Any, use: Callable[..., None], **options: bool) -> tuple[openai.APIError | None, int]:
    """Ask with a client of the SDK. Returns what it raised, and how many requests it sent."""

    def in_thread() -> tuple[openai.APIError | None, int]:
        with CountingClient(served.base_url) as client:
            try:
                use(client, **options)
            except openai.APIError as error:
                return error, client.sent
            return None, client.sent

    return await trio.to_thread.run_sync(in_thread, abandon_on_cancel=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_the_sdk_gets_the_error_and_repeats_only_what_a_repeat_can_mend(
    case: UpstreamCase, serving: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    first_token_seconds = 0.3 if case.stays_open else 100
    with caplog.at_level(logging.DEBUG, "crucible_trio"):
        async with (
            open_scripted_upstream(case.answer, stays_open=case.stays_open) as upstream,
            open_upstream(upstream.url, model="m", key=KEY) as engine,
            serving(engine, first_token_seconds=first_token_seconds, hold_seconds=30) as served,
        ):
            for use in (chat, responses):
                for stream in (False, True):
                    upstream.requests.clear()
                    error, sent = await ask(served, use, stream=stream)
                    if use is responses and case.name == "idle":  # a deadline makes a response incomplete: no error
                        assert (error, sent, len(upstream.requests)) == (None, 1, 1)
                        continue
                    is_event = stream and not case.before_answer
                    check_error(case, error, is_event=is_event)
                    assert sent == (1 if is_event or case.retry_after is None else 1 + MAX_RETRIES)
                    assert len(upstream.requests) == sent * case.attempts
            assert bool(await served.pipeline.list()) != case.before_answer, "a refusal leaves no stream"
    logged = [record.getMessage() for record in caplog.records]
    assert logged
    assert not [line for line in logged if CANARY in line or ASKED in line or KEY in line]


def check_error(case: UpstreamCase, error: openai.APIError | None, *, is_event: bool) -> None:
    assert error is not None
    assert error.code == case.code
    if is_event:
        return
    assert isinstance(error, openai.APIStatusError)
    assert (error.status_code, error.type) == (case.status, case.type)
    assert error.response.headers.get("retry-after") == case.retry_after
    assert (CANARY in error.message) == case.said
    assert CANARY not in "".join(error.response.headers.values())


@pytest.mark.parametrize("case", [case for case in CASES if case.retry_after is not None], ids=lambda case: case.name)
async def test_the_server_repeats_what_nobody_else_would_repeat(
    case: UpstreamCase, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No client waits for a response in the background. Only 429 and 503 say that a repeat may help."""
    monkeypatch.setattr(retries, "MAX_RETRY_AFTER", 0.0)  # a longer one is left to the client, which can show it
    async with (
        open_scripted_upstream(case.answer) as upstream,
        open_upstream(upstream.url, model="m") as engine,
        serving(engine, hold_seconds=30) as served,
    ):
        error, _ = await ask(served, background)
        assert error is not None
        assert error.code == case.code
        is_repeated = case.attempts == 3 or case.name in {"429 quota", "503"}
        assert len(upstream.requests) == (3 if is_repeated else 1)
        assert len(await served.pipeline.list()) == 1


async def test_a_late_refusal_is_an_event_and_is_not_repeated(serving: Any) -> None:
    async with (
        open_scripted_upstream(response(429, {})) as upstream,
        open_upstream(upstream.url, model="m") as engine,
        serving(engine, hold_seconds=0.001) as served,
        httpx.AsyncClient() as client,
    ):
        upstream.answers = trio.Event()
        body = {"messages": [{"role": "user", "content": ASKED}], "stream": True}
        async with client.stream("POST", f"{served.base_url}/chat/completions", json=body) as answer:
            assert answer.status_code == 200
            upstream.answers.set()
            assert b'"code":"upstream_refused"' in await answer.aread()
    assert len(upstream.requests) == 1


async def test_an_upstream_whose_error_quotes_the_key_is_not_quoted(serving: Any) -> None:
    said = {"error": {"message": f"API key not valid: {KEY}", "type": "t", "code": "c"}}
    async with (
        open_scripted_upstream(response(400, said)) as upstream,
        open_upstream(upstream.url, model="m", key=KEY) as engine,
        serving(engine, hold_seconds=30) as served,
    ):
        for stream in (False, True):
            error, _ = await ask(served, chat, stream=stream)
            assert error is not None
            assert error.code == "upstream_rejected"
            assert KEY not in json.dumps(error.body)


async def test_an_unreachable_upstream_is_a_status(serving: Any) -> None:
    async with open_upstream("http://127.0.0.1:1/v1", model="m") as engine, serving(engine, hold_seconds=30) as served:
        for use in (chat, responses):
            for stream in (False, True):
                error, sent = await ask(served, use, stream=stream)
                assert isinstance(error, openai.InternalServerError)
                assert (error.status_code, error.code) == (503, "upstream_unreachable")
                assert sent == 1 + MAX_RETRIES


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
async def test_a_client_that_closes_its_connection_in_the_hold_frees_the_upstream(path: str, serving: Any) -> None:
    async with (
        open_scripted_upstream(b"", stays_open=True) as upstream,
        open_upstream(upstream.url, model="m") as engine,
        serving(engine, hold_seconds=30) as served,
    ):
        body = {"input": ASKED} if path == "responses" else {"messages": [{"role": "user", "content": ASKED}]}
        content = json.dumps(body | {"stream": True}).encode()
        head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        async with await trio.open_tcp_stream("127.0.0.1", served.port) as connection:
            await connection.send_all(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            await upstream.until_open(1)
            [stream] = await served.pipeline.list()
        await upstream.until_open(0)
        await stream.log.wait_finished()
        assert stream.snapshot().by == "disconnect"
