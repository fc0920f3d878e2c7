"""Slots, threads and readers of the local engine, with fake models."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from crucible_trio.content import Piece
from crucible_trio.engine import Finish
from crucible_trio.engines.local import LocalEngine, slices
from crucible_trio.engines.local.turns import SLICE_TOKENS
from crucible_trio.errors import EngineError
from crucible_trio.output import Output
from crucible_trio.records import Usage
from crucible_trio.request import Message, Request, Sampling


def progress(total: int) -> dict[str, object]:
    delta = {"role": "assistant", "content": None}
    return {"choices": [{"delta": delta, "finish_reason": None}], "prompt_progress": {"total": total, "processed": 0}}


def token(text: str, count: int) -> dict[str, object]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": None}], "timings": {"predicted_n": count}}


def end(reason: str, count: int) -> dict[str, object]:
    return {"choices": [{"delta": {}, "finish_reason": reason}], "timings": {"predicted_n": count}}


def question(request: dict) -> str:
    return next(message["content"] for message in request["messages"] if message["role"] == "user")


class CountingServer:
    """A model that counts from 0 to `length` - 1, one number per token. Keeps every request."""

    def __init__(self, length: int = 10_000) -> None:
        self.length = length
        self.requests: list[dict] = []
        self.said: dict[str, int] = {}

    def handle_chat_completions(self, request: dict, callback: Callable[[object], bool], /) -> None:
        self.requests.append(request)
        last = request["messages"][-1]
        begin = len(last["content"].split()) if last["role"] == "assistant" else 0
        if callback(progress(7)):
            return
        for count in range(1, request["max_tokens"] + 1):
            number = begin + count - 1
            if number == self.length:
                callback(end("stop", count))
                return
            self.said[question(request)] = self.said.get(question(request), 0) + 1
            if callback(token(f"{number} ", count)):
                return
        callback(end("length", request["max_tokens"]))


class ChunkServer:
    """A model that sends the same chunks for every request, and raises those that are exceptions."""

    def __init__(self, *chunks: object) -> None:
        self.chunks = chunks

    def handle_chat_completions(self, request: dict, callback: Callable[[object], bool], /) -> None:
        for chunk in self.chunks:
            if isinstance(chunk, Exception):
                raise chunk
            if callback(chunk):
                return


class HeldServer:
    """A model that ignores its callback until `go` is set, as a real model does while it reads a prompt."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()

    def handle_chat_completions(self, request: dict, callback: Callable[[object], bool], /) -> None:
        callback(progress(7))
        self.entered.set()
        assert self.go.wait(60)
        if not callback(token("a", 1)):
            callback(end("stop", 1))


@asynccontextmanager
async def engine_of(server: object, *, slots: int = 1, context_tokens: int = 2048) -> AsyncIterator[LocalEngine]:
    engine = LocalEngine(server, "scripted", slots=slots, context_tokens=context_tokens)
    with trio.fail_after(60):
        try:
            yield engine
        finally:
            await engine.aclose()


class RunningStream:
    """The engine runs in the nursery and the test reads its pieces."""

    def __init__(self, nursery: trio.Nursery, engine: LocalEngine, request: Request, *, buffer: int = 64) -> None:
        self._send, self.pieces = trio.open_memory_channel[Piece](buffer)
        self.output = Output(self._send)
        self.scope = trio.CancelScope()
        self.finish: Finish | None = None
        self.ended = trio.Event()
        nursery.start_soon(self._run, engine, request)

    async def _run(self, engine: LocalEngine, request: Request) -> None:
        with self._send, self.scope:
            self.finish = await engine.generate(request, self.output)
        self.ended.set()

    async def take(self, count: int) -> str:
        return "".join([(await self.pieces.receive()).text for _ in range(count)])

    async def rest(self) -> str:
        return "".join([piece.text async for piece in self.pieces])


def numbers(count: int, begin: int = 0) -> str:
    return "".join(f"{number} " for number in range(begin, count))


async def free_slots(engine: LocalEngine, count: int) -> None:
    """Wait until `count` slots are free. That takes some milliseconds, because threads must end first."""
    with trio.fail_after(10):
        while engine._slots.available_tokens < count:
            await trio.sleep(0.005)


async def test_slices_continue_the_text_so_far(drive) -> None:
    async with engine_of(server := CountingServer(80)) as engine:
        pieces, finish = await drive(engine, Request("q"))
    assert "".join(text for _, text in pieces) == numbers(80)
    assert finish == Finish("stop", Usage(7, 81, 0))
    assert [request["messages"][1:] for request in server.requests] == [
        [],
        [{"role": "assistant", "content": numbers(32)}],
        [{"role": "assistant", "content": numbers(64)}],
    ]


@pytest.mark.parametrize("limit", [1, 31, 32, 33, 64, 70])
async def test_exactly_max_output_tokens_are_generated(drive, limit: int) -> None:
    async with engine_of(server := CountingServer()) as engine:
        pieces, finish = await drive(engine, Request("q", max_output_tokens=limit))
    assert "".join(text for _, text in pieces) == numbers(limit)
    assert finish == Finish("length", Usage(7, limit, 0))
    assert sum(request["max_tokens"] for request in server.requests) == limit


async def test_without_a_limit_the_output_fills_half_of_the_context(drive) -> None:
    async with engine_of(CountingServer(), context_tokens=200) as engine:
        _, finish = await drive(engine, Request("q"))
    assert finish == Finish("length", Usage(7, 100, 0))


async def test_a_stalled_stream_generates_one_slice_and_holds_no_slot_and_no_thread() -> None:
    async with engine_of(server := CountingServer()) as engine, trio.open_nursery() as nursery:
        stalled = RunningStream(nursery, engine, Request("stalled"), buffer=4)
        await wait_all_tasks_blocked()
        await free_slots(engine, 1)
        assert server.said["stalled"] == SLICE_TOKENS
        assert not stalled.output.is_queued
        other = RunningStream(nursery, engine, Request("other", max_output_tokens=100))
        assert await other.rest() == numbers(100)
        assert server.said["stalled"] == SLICE_TOKENS
        assert await stalled.take(100) == numbers(100)  # no piece is lost when its reader resumes
        nursery.cancel_scope.cancel()


async def test_the_next_slice_begins_when_the_buffer_has_taken_the_last() -> None:
    async with engine_of(server := CountingServer()) as engine, trio.open_nursery() as nursery:
        stream = RunningStream(nursery, engine, Request("q"), buffer=10)
        await free_slots(engine, 1)
        await stream.take(SLICE_TOKENS - 10 - 1)  # 10 are in the buffer, and the engine waits with one
        await wait_all_tasks_blocked()
        assert len(server.requests) == 1
        await stream.take(1)
        await stream.take(11)
        assert len(server.requests) == 2
        nursery.cancel_scope.cancel()


async def test_a_stream_that_keeps_up_keeps_its_slot_and_other_streams_are_queued(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slices, "READER_PATIENCE_SECONDS", 60)  # so that a slow machine does not matter
    async with engine_of(server := CountingServer(150)) as engine, trio.open_nursery() as nursery:
        first = RunningStream(nursery, engine, Request("first"), buffer=1000)
        await first.take(1)
        second = RunningStream(nursery, engine, Request("second"), buffer=1000)
        while not second.output.is_queued:
            assert first.finish is None
            await trio.lowlevel.checkpoint()
        assert not first.output.is_queued
        await second.ended.wait()
        assert second.output.queued_seconds > 0
        assert not second.output.is_queued
    asked = [question(request) for request in server.requests]
    assert asked == ["first"] * 5 + ["second"] * 5


async def test_a_stream_cancelled_while_queued_takes_no_slot() -> None:
    async with engine_of(server := HeldServer()) as engine, trio.open_nursery() as nursery:
        first = RunningStream(nursery, engine, Request("first"))
        await trio.to_thread.run_sync(server.entered.wait)
        second = RunningStream(nursery, engine, Request("second"))
        await wait_all_tasks_blocked()
        assert second.output.is_queued
        second.scope.cancel()
        await second.ended.wait()
        assert not second.output.is_queued
        server.go.set()
        assert await first.rest() == "a"
        await free_slots(engine, 1)
        assert engine.abandoned_threads == 0


async def test_a_cancelled_stream_stops_the_model_and_releases_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "ABANDON_AFTER_SECONDS", 60)  # so that a slow machine does not matter
    async with engine_of(server := CountingServer()) as engine, trio.open_nursery() as nursery:
        stream = RunningStream(nursery, engine, Request("q"), buffer=2)
        await stream.take(1)
        stream.scope.cancel()
        await stream.ended.wait()
        assert engine._slots.available_tokens == 1
        assert engine.abandoned_threads == 0
        assert server.said["q"] <= SLICE_TOKENS


async def test_a_thread_that_does_not_stop_is_abandoned_and_counted_and_keeps_its_slot_until_it_ends() -> None:
    async with engine_of(server := HeldServer()) as engine, trio.open_nursery() as nursery:
        stream = RunningStream(nursery, engine, Request("q"))
        await trio.to_thread.run_sync(server.entered.wait)
        assert engine.abandoned_threads == 0
        stream.scope.cancel()
        await stream.ended.wait()
        assert engine.abandoned_threads == 1
        assert engine._slots.available_tokens == 0
        second = RunningStream(nursery, engine, Request("next"))
        await wait_all_tasks_blocked()
        assert second.output.is_queued
        server.go.set()
        assert await second.rest() == "a"
        await free_slots(engine, 1)
        assert engine.abandoned_threads == 1


async def test_closing_waits_for_the_threads() -> None:
    server = HeldServer()
    async with engine_of(server) as engine:
        async with trio.open_nursery() as nursery:
            RunningStream(nursery, engine, Request("q"))
            await trio.to_thread.run_sync(server.entered.wait)
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            closed = trio.Event()

            async def close() -> None:
                await engine.aclose()
                closed.set()

            nursery.start_soon(close)
            await wait_all_tasks_blocked()
            assert not closed.is_set()
            server.go.set()
            await closed.wait()
        assert engine._slots.available_tokens == 1
        send, _ = trio.open_memory_channel[Piece](1)
        with pytest.raises(trio.ClosedResourceError):
            await engine.generate(Request("q"), Output(send))
        assert engine._slots.available_tokens == 1


async def test_a_stream_does_not_look_finished_when_the_model_is_closed() -> None:
    server = HeldServer()
    async with engine_of(server) as engine, trio.open_nursery() as nursery:
        send, receive = trio.open_memory_channel[Piece](1)
        raised = False

        async def generate() -> None:
            nonlocal raised
            try:
                await engine.generate(Request("q"), Output(send))
            except trio.ClosedResourceError:
                raised = True

        nursery.start_soon(generate)
        await trio.to_thread.run_sync(server.entered.wait)
        nursery.start_soon(engine.aclose)
        await wait_all_tasks_blocked()
        server.go.set()
        assert (await receive.receive()).text == "a"
    assert raised


async def test_an_ended_stream_releases_the_slot_and_its_error_is_not_in_a_group() -> None:
    async with engine_of(CountingServer()) as engine:
        send, receive = trio.open_memory_channel[Piece](1)
        receive.close()
        with pytest.raises(trio.ClosedResourceError):
            await engine.generate(Request("q"), Output(send))
        await free_slots(engine, 1)


@pytest.mark.parametrize(
    ("chunks", "code"),
    [
        ([progress(7), token("a", 1)], "model_failed"),  # no finish reason
        ([], "model_failed"),
        ([progress(7), {"choices": 5}], "model_failed"),
        ([progress(7), ValueError("Why is the sky blue?")], "unsupported_conversation"),
        (
            [{"error": {"message": "Why is the sky blue?", "type": "invalid_request_error"}}],
            "unsupported_conversation",
        ),
        ([progress(513), token("a", 1)], "prompt_too_long"),
        ([{"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 2000, "n_ctx": 1024}}], "prompt_too_long"),
    ],
)
async def test_a_failure_has_a_code_and_does_not_quote_the_prompt(
    drive, chunks: list[object], code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with engine_of(ChunkServer(*chunks), context_tokens=1024) as engine:
        with pytest.raises(EngineError) as caught:
            await drive(engine, Request("Why is the sky blue?"))
        await free_slots(engine, 1)
    assert caught.value.code == code
    assert "sky" not in str(caught.value)
    assert "sky" not in caplog.text


async def test_the_error_for_a_long_prompt_has_both_numbers(drive) -> None:
    async with engine_of(ChunkServer(progress(513)), context_tokens=1024) as engine:
        with pytest.raises(EngineError, match=r"The prompt has 513 tokens\. The model accepts at most 512"):
            await drive(engine, Request("q"))
        with pytest.raises(EngineError, match=r"The prompt has 513 tokens\. The model accepts at most 256"):
            await drive(engine, Request("q", mode="deep"))


async def test_a_full_context_ends_with_length(drive) -> None:
    class FullServer(CountingServer):
        def handle_chat_completions(self, request: dict, callback: Callable[[object], bool], /) -> None:
            if len(self.requests) == 2:
                callback({"error": {"type": "exceed_context_size_error", "n_prompt_tokens": 90, "n_ctx": 80}})
            else:
                super().handle_chat_completions(request, callback)

    async with engine_of(FullServer()) as engine:
        pieces, finish = await drive(engine, Request("q"))
    assert "".join(text for _, text in pieces) == numbers(64)
    assert finish == Finish("length", Usage(7, 64, 0))


async def test_a_slice_shorter_than_requested_ends_with_length(drive) -> None:
    async with engine_of(ChunkServer(progress(7), token("a", 1), end("length", 1))) as engine:
        pieces, finish = await drive(engine, Request("q"))
    assert pieces == [(None, "a")]
    assert finish == Finish("length", Usage(7, 1, 0))


async def test_an_answer_without_text_is_finished_and_empty(drive) -> None:
    async with engine_of(ChunkServer(progress(7), end("stop", 1))) as engine:
        assert await drive(engine, Request("q")) == ([], Finish("stop", Usage(7, 1, 0)))


@pytest.mark.parametrize("stop", ["31 32", "32 33", "63 64 65", "40 ", "30 31 32 33 34"])
async def test_a_stop_string_across_two_slices_is_found(drive, stop: str) -> None:
    async with engine_of(server := CountingServer()) as engine:
        pieces, finish = await drive(engine, Request("q", sampling=Sampling(stop=(stop,))))
        await free_slots(engine, 1)
    text = numbers(100)
    assert "".join(text for _, text in pieces) == text[: text.index(stop)]
    last = int(stop.split()[-1])
    assert finish == Finish("stop", Usage(7, last + 1, 0), stop_string=stop)
    assert len(server.requests) == last // SLICE_TOKENS + 1


async def test_a_partial_stop_string_at_the_end_of_the_answer_is_kept(drive) -> None:
    async with engine_of(CountingServer(40)) as engine:
        pieces, _ = await drive(engine, Request("q", sampling=Sampling(stop=("39 40",))))
    assert "".join(text for _, text in pieces) == numbers(40)


async def test_a_reader_stalled_on_the_last_piece_holds_no_slot() -> None:
    async with engine_of(CountingServer(40)) as engine, trio.open_nursery() as nursery:
        stream = RunningStream(nursery, engine, Request("q", sampling=Sampling(stop=("39 40",))), buffer=1)
        await stream.take(38)
        await wait_all_tasks_blocked()  # 38 is in the buffer, and the engine waits with 39, which was held back
        await free_slots(engine, 1)
        assert stream.finish is None
        assert await stream.rest() == "38 39 "


async def test_every_slice_has_another_seed_derived_from_the_requests(drive) -> None:
    async with engine_of(server := CountingServer(70)) as engine:
        await drive(engine, Request("q", sampling=Sampling(seed=2**32 - 2, temperature=0.0, top_p=0.5)))
        assert [request["seed"] for request in server.requests] == [
            2**32 - 2,
            0,
            1,
        ]  # the highest would mean random
        assert {(request["temperature"], request["top_p"]) for request in server.requests} == {(0.0, 0.5)}
        server.requests.clear()
        await drive(engine, Request("q"))
    assert all("seed" not in request and "top_p" not in request for request in server.requests)


async def test_deep_is_two_turns_in_one_conversation(drive) -> None:
    class TalkingServer:
        def __init__(self) -> None:
            self.requests: list[dict] = []

        def handle_chat_completions(self, request: dict, callback: Callable[[object], bool], /) -> None:
            self.requests.append(request)
            texts = ["1", ". a\n2", ".", " b"] if len(self.requests) == 1 else ["c", " d"]
            callback(progress(50 * len(self.requests)))
            for count, text in enumerate(texts, 1):
                callback(token(text, count))
            callback(end("stop", len(texts) + 1))

    begun = (Message("system", "be brief"), Message("user", "hi"), Message("assistant", "yes?"))
    request = Request((*begun, Message("user", "why?")), mode="deep", sampling=Sampling(seed=1, stop=("b",)))
    async with engine_of(server := TalkingServer()) as engine:
        pieces, finish = await drive(engine, request)
    assert pieces == [(0, "1. a\n"), (1, "2. b"), (None, "c"), (None, " d")]  # `stop` does not end the trace
    assert finish == Finish("stop", Usage(50, 8, 5))
    first, second = (request["messages"] for request in server.requests)
    assert first[:3] == [{"role": message.role, "content": message.content} for message in begun]
    assert first[3]["content"].startswith("why?\n")
    assert second[:4] == first
    assert second[4] == {"role": "assistant", "content": "1. a\n2. b"}
    assert second[5]["role"] == "user"
    assert second[5]["content"].endswith(": why?")
    assert [request["seed"] for request in server.requests] == [1, 2]


@pytest.mark.parametrize(
    ("limit", "trace", "answer"), [(100, 50, 50), (3, 1, 2), (2, 1, 1), (1, 1, 0), (None, 192, 832), (2000, 192, 1808)]
)
async def test_reasoning_and_answer_share_max_output_tokens(drive, limit: int | None, trace: int, answer: int) -> None:
    async with engine_of(CountingServer()) as engine:
        pieces, finish = await drive(engine, Request("q", mode="deep", max_output_tokens=limit), buffer=10_000)
    assert finish == Finish("length", Usage(7, trace + answer, trace))
    reasoning = "".join(text for segment, text in pieces if segment is not None)
    assert reasoning == numbers(trace)
    assert "".join(text for segment, text in pieces if segment is None) == numbers(answer)


async def test_an_empty_trace_is_left_out_of_the_conversation(drive) -> None:
    class SilentServer(CountingServer):
        def handle_chat_completions(self, request: dict, callback: Callable[[object], bool], /) -> None:
            if not self.requests:
                self.requests.append(request)
                callback(end("stop", 1))
            else:
                super().handle_chat_completions(request, callback)

    async with engine_of(server := SilentServer(3)) as engine:
        pieces, finish = await drive(engine, Request("q", mode="deep"))
    assert "".join(text for _, text in pieces) == numbers(3)
    assert finish == Finish("stop", Usage(None, 5, 1))
    assert [message["role"] for message in server.requests[1]["messages"]] == ["user", "user"]


async def test_an_assistant_message_at_the_end_is_continued(drive) -> None:
    class EchoServer(ChunkServer):
        def handle_chat_completions(self, request: dict, callback: Callable[[object], bool], /) -> None:
            self.request = request
            super().handle_chat_completions(request, callback)

    server = EchoServer(progress(7), end("stop", 1))
    async with engine_of(server) as engine:
        messages = (Message("user", "q"), Message("assistant", "one "), Message("assistant", "two \ud83c\udf89\ud83c"))
        await drive(engine, Request(messages))
        assert server.request["messages"] == [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "one two \N{PARTY POPPER}\ufffd"},
        ]
        await drive(engine, Request(messages, mode="deep"))
        assert [message["role"] for message in server.request["messages"]][-1] == "user"
