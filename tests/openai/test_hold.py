"""The hold: an answer with `stream` waits for an upstream's answer, so that a refusal has a status."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.apis.kit.starting import hold, start_or_join
from crucible_trio.engine import Finish
from crucible_trio.errors import EngineError, UpstreamReport
from crucible_trio.output import Output
from crucible_trio.pipeline import open_pipeline
from crucible_trio.request import Request
from crucible_trio.testing import ScriptedEngine

CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Why?"}], "stream": True})
RESPONSE = ("/v1/responses", {"input": "Why?", "stream": True})
KEY = {"Idempotency_Key": "key"}
BUSY = EngineError("upstream_refused", "Busy.", retryable=True, status=429, retry_after=29.5)


def late_code(path: str) -> bytes:
    """The code of `BUSY` as an event."""
    return b'"rate_limit_exceeded"' if path.endswith("responses") else b'"upstream_refused"'


each_api = pytest.mark.parametrize(("path", "body"), [CHAT, RESPONSE], ids=["chat", "responses"])


class WaitingEngine:
    """An engine that waits for an upstream. Each call follows the next of the scripts, and the last one for good.

    A script is a pair: the steps before the upstream accepts, and those after it.
    """

    def __init__(self, *scripts: tuple[Any, Any], waits: bool = True) -> None:
        self._scripts = list(scripts)
        self.info = replace(ScriptedEngine().info, waits_for_upstream=waits)
        self.calls = 0
        self.live = 0

    async def generate(self, request: Request, output: Output) -> Finish:
        self.calls += 1
        self.live += 1
        try:
            before, after = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
            await ScriptedEngine(before).generate(request, output)
            output.accepted()
            return await ScriptedEngine(after).generate(request, output)
        finally:
            self.live -= 1


@each_api
async def test_the_status_line_waits_until_the_upstream_has_accepted(
    path: str, body: Any, open_api: Callable, autojump_clock: MockClock
) -> None:
    engine = WaitingEngine(([1.5], [10, "a"]))
    async with open_api(engine=engine) as api, api.open("POST", path, body) as answer:
        await trio.sleep(1.4)
        assert engine.live == 1
        assert answer.status is None
        await trio.sleep(0.2)
        assert answer.status == 200
        await answer.until(lambda answer: answer.ended)
        assert b'"a"' in answer.body
        assert answer.headers["crucible-stream"] == (await api.pipeline.list())[0].id


@each_api
@pytest.mark.parametrize(("settings", "held_for"), [({}, 2), ({"hold_seconds": 5}, 5), ({"hold_seconds": 0}, 0)])
async def test_after_the_longest_hold_the_stream_opens_and_a_failure_is_an_event(
    path: str, body: Any, settings: Any, held_for: float, open_api: Callable, autojump_clock: MockClock
) -> None:
    engine = WaitingEngine(([20, BUSY], []))
    async with open_api(engine=engine, grace_seconds=0.001, **settings) as api:
        async with api.open("POST", path, body) as answer:
            if held_for:
                await trio.sleep(held_for - 0.1)
                assert answer.status is None
            await trio.sleep(0.2)
            assert answer.status == 200
            await answer.until(lambda answer: answer.ended)
        assert late_code(path) in answer.body
        assert (await api.pipeline.list())[0].status == "failed"


@each_api
async def test_a_refusal_in_the_hold_is_a_status_and_leaves_no_stream(
    path: str, body: Any, open_api: Callable, autojump_clock: MockClock
) -> None:
    said = UpstreamReport("This model's maximum context length is 8.", "t", "context_length_exceeded", "messages")
    refused = EngineError("upstream_rejected", "It said no.", status=400, upstream=said)
    async with open_api(engine=WaitingEngine(([1, refused], []))) as api:
        answer = await api.post(path, body)
        assert answer.status == 400
        assert answer.error == {
            "message": said.message,
            "type": "t",
            "param": "messages",
            "code": "context_length_exceeded",
        }
        assert await api.pipeline.list() == []
        assert not {"location", "crucible-stream"} & set(answer.headers)
        await wait_all_tasks_blocked()
        assert api.pipeline.store.log_bytes == 0


class AcceptsAndFails:
    """An engine whose server accepts the request and then sends something else than a completion, all at once."""

    info = replace(ScriptedEngine().info, waits_for_upstream=True)

    async def generate(self, request: Request, output: Output) -> Finish:
        output.accepted()
        raise EngineError("upstream_invalid_response", "This is no completion.")


async def test_a_failure_directly_after_the_acceptance_is_an_end_of_the_stream(autojump_clock: MockClock) -> None:
    async with open_pipeline(AcceptsAndFails()) as pipeline:
        started = await start_or_join(
            pipeline, Request("q"), owner="", key=None, on_disconnect="cancel", starts_with_reader=False, may_hold=True
        )
        await wait_all_tasks_blocked()
        assert started.stream.log.finished
        assert await hold(started, 2.0) is None


@each_api
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("store", [True, False])
async def test_a_refusal_leaves_the_key_free(
    path: str, body: Any, *, stream: bool, store: bool, open_api: Callable, autojump_clock: MockClock
) -> None:
    body = body | {"stream": stream} | ({} if "chat" in path else {"store": store})
    engine = WaitingEngine(([BUSY], []), ([], ["a"]))
    async with open_api(engine=engine) as api:
        answer = await api.post(path, body, **KEY)
        assert (answer.status, answer.headers["retry-after"]) == (429, "30")
        assert answer.error["type"] == "rate_limit_error"
        assert await api.pipeline.list() == []
        answer = await api.post(path, body, **KEY)
        assert answer.status == 200
        assert b'"a"' in answer.body
        assert "crucible-replayed" not in answer.headers
        assert engine.calls == 2


@each_api
@pytest.mark.parametrize("stream", [True, False])
async def test_a_failure_with_output_keeps_the_stream_and_its_key(
    path: str, body: Any, *, stream: bool, open_api: Callable, autojump_clock: MockClock
) -> None:
    engine = WaitingEngine(([], ["a", 5, BUSY]))
    async with open_api(engine=engine) as api:
        first = await api.post(path, body | {"stream": stream}, **KEY)
        second = await api.post(path, body | {"stream": stream}, **KEY)
        assert second.headers["crucible-replayed"] == "true"
        for answer in (first, second):
            assert answer.status == (200 if stream else 400)
            assert stream or answer.headers["x-should-retry"] == "false"
        assert (await api.pipeline.list())[0].snapshot().output == "a"
        assert engine.calls == 1


@each_api
async def test_a_joined_stream_that_was_over_is_not_discarded(
    path: str, body: Any, open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api(engine=WaitingEngine(([10, BUSY], []))) as api:
        for _ in range(2):  # both get the failure as an event: the first one after the hold
            answer = await api.post(path, body, **KEY)
            assert answer.status == 200
            assert late_code(path) in answer.body
        assert answer.headers["crucible-replayed"] == "true"
        assert len(await api.pipeline.list()) == 1


@each_api
async def test_two_clients_with_one_key_are_both_held_and_both_refused(
    path: str, body: Any, open_api: Callable, autojump_clock: MockClock
) -> None:
    engine = WaitingEngine(([1, BUSY], []))
    async with open_api(engine=engine) as api:
        async with api.open("POST", path, body, **KEY) as first, api.open("POST", path, body, **KEY) as second:
            for answer in (first, second):
                await answer.until(lambda answer: answer.ended)
                assert answer.status == 429
        assert engine.calls == 1
        assert await api.pipeline.list() == []


# Other ends in the hold


async def test_a_deadline_or_a_cancel_in_the_hold_is_a_status_of_a_chat_completion(
    open_api: Callable, autojump_clock: MockClock
) -> None:
    path, body = CHAT
    async with open_api(engine=WaitingEngine(([inf], [])), total_seconds=1) as api:
        answer = await api.post(path, body)
        assert (answer.status, answer.error["code"]) == (400, "total_deadline")
        assert answer.headers["x-should-retry"] == "false"
        assert answer.headers["crucible-stream"] == (await api.pipeline.list())[0].id
        async with api.open("POST", path, body) as answer:
            await wait_all_tasks_blocked()
            (await api.pipeline.list())[0].cancel()
            await answer.until(lambda answer: answer.ended)
            assert (answer.status, answer.error["code"]) == (400, "cancelled")


async def test_a_response_in_the_hold_can_be_incomplete_or_cancelled(
    open_api: Callable, autojump_clock: MockClock
) -> None:
    path, body = RESPONSE
    async with open_api(engine=WaitingEngine(([inf], [])), total_seconds=1) as api:
        answer = await api.post(path, body)
        assert (answer.status, answer.events[-1]["type"]) == (200, "response.incomplete")
        async with api.open("POST", path, body | {"store": False}) as answer:
            await wait_all_tasks_blocked()
            (await api.pipeline.list())[0].cancel()
            await answer.until(lambda answer: answer.ended)
            assert (answer.status, answer.error["code"]) == (400, "cancelled")
        assert len(await api.pipeline.list()) == 1


@each_api
async def test_an_empty_answer_in_the_hold_is_a_whole_stream(
    path: str, body: Any, open_api: Callable, autojump_clock: MockClock
) -> None:
    async with open_api(engine=WaitingEngine(([], []))) as api:
        answer = await api.post(path, body)
        assert answer.status == 200
        assert b'"stop"' in answer.body or b"response.completed" in answer.body


# The client leaves


@each_api
@pytest.mark.parametrize("store", [True, False])
@pytest.mark.parametrize("key", [{}, KEY], ids=["no key", "key"])
async def test_a_client_that_leaves_the_hold_is_treated_by_the_policy(
    path: str, body: Any, *, store: bool, key: dict[str, str], open_api: Callable, autojump_clock: MockClock
) -> None:
    body = body if "chat" in path else body | {"store": store}
    engine = WaitingEngine(([inf], []))
    async with open_api(engine=engine, grace_seconds=60) as api:
        async with api.open("POST", path, body, **key):
            await wait_all_tasks_blocked()
            assert engine.live == 1
        await wait_all_tasks_blocked()
        streams = await api.pipeline.list()
        if key:
            assert [stream.paused for stream in streams] == [True]
            await trio.sleep(61)
            assert streams[0].status == "cancelled"
        else:
            is_kept = "chat" in path or store
            assert [stream.status for stream in streams] == ["cancelled"] * is_kept
        assert engine.live == 0


@each_api
@pytest.mark.parametrize("stream", [True, False])
async def test_a_refusal_that_no_client_was_told_of_leaves_the_key_free(
    path: str, body: Any, *, stream: bool, open_api: Callable, autojump_clock: MockClock
) -> None:
    body = body | {"stream": stream}
    engine = WaitingEngine(([5, BUSY], []), ([], ["a"]))
    async with open_api(engine=engine) as api:
        async with api.open("POST", path, body, **KEY):
            await trio.sleep(1)
        await trio.sleep(10)
        answer = await api.post(path, body, **KEY)
        assert answer.status == 200
        assert b'"a"' in answer.body
        assert "crucible-replayed" not in answer.headers
        assert engine.calls == 2
        assert len(await api.pipeline.list()) == 1


async def test_a_native_stream_that_was_refused_keeps_its_key(open_api: Callable, autojump_clock: MockClock) -> None:
    engine = WaitingEngine(([BUSY], []))
    async with open_api(engine=engine) as api:
        ids = set()
        for _ in range(2):
            answer = await api.post("/v1/streams", {"input": "Why?"}, **KEY)
            await wait_all_tasks_blocked()
            ids.add(answer.json["id"])
        assert len(ids) == engine.calls == 1


async def test_a_client_with_a_key_that_left_the_hold_can_come_back(
    open_api: Callable, autojump_clock: MockClock
) -> None:
    path, body = CHAT
    engine = WaitingEngine(([5], ["a"]))
    async with open_api(engine=engine) as api:
        async with api.open("POST", path, body, **KEY):
            await trio.sleep(1)
        answer = await api.post(path, body, **KEY)
        assert answer.status == 200
        assert b'"a"' in answer.body
        assert engine.calls == 1


# Streams that are not held


@pytest.mark.parametrize(
    ("path", "body", "waits"),
    [
        (*CHAT, False),
        (*RESPONSE, False),
        (RESPONSE[0], RESPONSE[1] | {"background": True}, True),
        (RESPONSE[0], {"input": "Why?", "background": True}, True),
        ("/v1/streams", {"input": "Why?"}, True),
    ],
)
async def test_a_stream_in_the_background_and_another_engine_are_not_held(
    path: str, body: Any, *, waits: bool, open_api: Callable, autojump_clock: MockClock
) -> None:
    engine = WaitingEngine(([1, BUSY], []), waits=waits)
    async with open_api(engine=engine) as api, api.open("POST", path, body) as answer:
        await wait_all_tasks_blocked()
        assert answer.status in {200, 201}
        await trio.sleep(2)
        assert (await api.pipeline.list())[0].status == "failed"


@pytest.mark.parametrize("headers", [{"Accept": "text/event-stream"}, {"Accept": "application/json"}])
async def test_the_native_api_is_never_held_and_leaves_retries_to_the_server(
    headers: dict[str, str], open_api: Callable, autojump_clock: MockClock
) -> None:
    client_retries = []

    async def generate(request: Request, output: Output) -> Finish:
        client_retries.append(output.client_retries)
        await trio.sleep(1)
        raise BUSY

    engine = WaitingEngine(([], []))
    engine.generate = generate  # type: ignore[method-assign]
    async with open_api(engine=engine) as api, api.open("POST", "/v1/streams", {"input": "Why?"}, **headers) as answer:
        await wait_all_tasks_blocked()
        assert answer.status in {200, 201}
        assert client_retries == [False]
        await trio.sleep(2)
        shown = await api.get(f"/v1/streams/{(await api.pipeline.list())[0].id}")
        assert shown.json["error"] == {
            "code": "upstream_refused",
            "message": "Busy.",
            "retryable": True,
            "status": 429,
            "retry_after": 29.5,
        }


@pytest.mark.parametrize(
    ("path", "body", "hold_seconds", "expected"),
    [
        (*CHAT, 2, True),
        (*CHAT, 0, False),
        (CHAT[0], CHAT[1] | {"stream": False}, 0, True),
        (*RESPONSE, 2, True),
        (*RESPONSE, 0, False),
        (RESPONSE[0], {"input": "Why?"}, 0, True),
        (RESPONSE[0], {"input": "Why?", "background": True}, 2, False),
        (RESPONSE[0], RESPONSE[1] | {"background": True}, 2, False),
    ],
)
async def test_the_client_retries_where_it_gets_a_refusal_as_a_status(
    path: str, body: Any, hold_seconds: float, *, expected: bool, open_api: Callable, autojump_clock: MockClock
) -> None:
    client_retries = []

    async def generate(request: Request, output: Output) -> Finish:
        client_retries.append(output.client_retries)
        return Finish()

    engine = WaitingEngine(([], []))
    engine.generate = generate  # type: ignore[method-assign]
    async with open_api(engine=engine, hold_seconds=hold_seconds) as api:
        await api.post(path, body)
        await wait_all_tasks_blocked()
    assert client_retries == [expected]
