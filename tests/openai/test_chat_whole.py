"""A chat completion in one JSON object: its fields, the status of a failure, and backpressure on the engine."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.apis.kit.failures import CLIENTS_FAULT
from crucible_trio.content import Reasoning
from crucible_trio.engine import Finish
from crucible_trio.errors import EngineError
from crucible_trio.records import Usage
from crucible_trio.testing import Gate, Repeat

KEY = {"Idempotency_Key": "key"}


async def test_a_completion_is_one_object(open_api, autojump_clock: MockClock) -> None:
    steps = (Reasoning("First, ", 0), Reasoning("then.", 1), "Hel", "lo.", Finish(usage=Usage(3, 9, 4)))
    async with open_api(*steps) as api:
        answer = await api.chat(model="other")
        stream = (await api.pipeline.list())[0]
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["crucible-stream"] == stream.id
        assert answer.headers["location"] == f"/v1/streams/{stream.id}"
        assert answer.json == {
            "id": f"chatcmpl-{stream.id[4:]}",
            "object": "chat.completion",
            "created": int(stream.created_at),
            "model": "other",
            "choices": [
                {
                    "index": 0,
                    "message": {
                        "role": "assistant",
                        "content": "Hello.",
                        "refusal": None,
                        "reasoning_content": "First, then.",
                    },
                    "finish_reason": "stop",
                    "logprobs": None,
                }
            ],
            "usage": {
                "prompt_tokens": 3,
                "completion_tokens": 9,
                "total_tokens": 12,
                "completion_tokens_details": {"reasoning_tokens": 4},
            },
        }


async def test_a_missing_trace_and_missing_usage_are_left_out(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", Finish("length")) as api:
        answer = await api.chat(stream=False)
        [choice] = answer.json["choices"]
        assert choice["message"] == {"role": "assistant", "content": "a", "refusal": None}
        assert choice["finish_reason"] == "length"
        assert "usage" not in answer.json


async def test_a_whole_completion_matches_the_streamed_one(open_api, autojump_clock: MockClock) -> None:
    async with open_api(Reasoning("x"), "a", Finish(usage=Usage(1, 2))) as api:
        whole = (await api.chat(KEY)).json
        streamed = await api.chat(KEY, stream=True, stream_options={"include_usage": True})
        assert streamed.headers["crucible-replayed"] == "true"
        *_, end, usage, _ = streamed.events
        assert end["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert [usage[name] for name in ("id", "created", "model", "usage")] == [
            whole[name] for name in ("id", "created", "model", "usage")
        ]
        assert api.engine.calls == 1


async def test_a_long_log_becomes_one_answer(open_api, autojump_clock: MockClock) -> None:
    async with open_api(Repeat("x" * 1000, 500), buffer_tokens=2) as api:
        answer = await api.chat()
        assert answer.json["choices"][0]["message"]["content"] == "x" * 500_000


# Failures before the status line is sent


@pytest.mark.parametrize(
    ("steps", "status", "code", "retry_after"),
    [
        ([EngineError("upstream_refused", "Busy.", retryable=True)], 503, "upstream_refused", "5"),
        ([EngineError("model_failed", "No.")], 400, "model_failed", None),
        ([EngineError("prompt_too_long", "No.")], 400, "prompt_too_long", None),
        ([EngineError("unsupported_conversation", "No.", retryable=True)], 400, "unsupported_conversation", None),
        ([ValueError("secret")], 400, "engine_error", None),
        ([1000], 400, "idle_deadline", None),
        ([Repeat([1, "b"])], 400, "total_deadline", None),
    ],
)
async def test_a_failure_has_a_status_and_says_whether_to_retry(
    open_api, steps, status, code, retry_after, autojump_clock: MockClock
) -> None:
    async with open_api("a", *steps, total_seconds=200, idle_seconds=100) as api:
        answer = await api.chat()
        kind = "invalid_request_error" if code in CLIENTS_FAULT else "server_error"
        assert (answer.status, answer.error["code"], answer.error["type"]) == (status, code, kind)
        assert answer.headers.get("retry-after") == retry_after
        # The partial answer is not lost.
        assert (await api.get(answer.headers["location"])).json["output"].startswith("a")
        # With a key the same request gets the same failure again.
        for _ in range(2):
            answer = await api.chat(KEY)
            assert (answer.status, answer.error["code"]) == (400, code)
            assert answer.headers["x-should-retry"] == "false"
        assert api.engine.calls == 2


@pytest.mark.parametrize(
    ("by", "status", "retry_after"), [("client", 400, None), ("disconnect", 400, None), ("shutdown", 503, "5")]
)
async def test_a_cancelled_stream_is_an_error_status(
    open_api, by, status, retry_after, autojump_clock: MockClock
) -> None:
    async with open_api("a", gate := Gate()) as api, api.open_chat(KEY) as answer:
        await gate.wait_reached()
        (await api.pipeline.list())[0].cancel(by)
        await answer.until(lambda answer: answer.ended)
        assert (answer.status, answer.error["code"]) == (status, "cancelled")
        assert answer.headers.get("retry-after") == retry_after


# The client leaves


async def test_a_client_that_leaves_stops_the_engine(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", gate := Gate(), "b") as api:
        async with api.open_chat():
            await gate.wait_reached()
        await wait_all_tasks_blocked()
        [stream] = await api.pipeline.list()
        assert (stream.status, stream.snapshot().by) == ("cancelled", "disconnect")


async def test_with_a_key_the_stream_pauses_and_a_retry_gets_the_answer(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", gate := Gate(), "b") as api:
        async with api.open_chat(KEY):
            await gate.wait_reached()
        await wait_all_tasks_blocked()
        [stream] = await api.pipeline.list()
        assert stream.paused
        gate.open()
        answer = await api.chat(KEY)
        assert answer.headers["crucible-replayed"] == "true"
        assert answer.json["choices"][0]["message"]["content"] == "ab"
        assert api.engine.calls == 1


async def test_a_waiting_client_counts_as_a_reader(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", gate := Gate(), idle_seconds=1000) as api, api.open_chat():
        await gate.wait_reached()
        assert api.number("readers") == 1
        await trio.sleep(500)  # longer than any grace period, with this client as the only reader
        assert (await api.pipeline.list())[0].status == "running"
