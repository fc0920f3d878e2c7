"""The local engine with the real model. These tests do not check the meaning of its text."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
import trio

from crucible_trio.content import Piece
from crucible_trio.engine import Finish
from crucible_trio.engines.local import LocalEngine, open_local, slices
from crucible_trio.engines.local import engine as local
from crucible_trio.engines.local.turns import SLICE_TOKENS
from crucible_trio.errors import ConfigError, EngineError
from crucible_trio.output import Output
from crucible_trio.request import Message, Request, Sampling

pytest.importorskip("xllamacpp", reason="needs the extra `local`")

pytestmark = pytest.mark.slow

QUESTION = "Why do leaves change colour in autumn?"
GREEDY = Sampling(temperature=0.0)
SLOTS = 2
LONG_PROMPT = "The quick brown fox jumps over the lazy dog near the river. " * 33  # about 470 tokens, 8 batches


class SpyServer:
    """The real model, with its requests and chunks recorded. `endless` keeps it from ending before the limit."""

    def __init__(self, server, *, endless: bool = False) -> None:
        self.server = server
        self.endless = endless
        self.requests: list[dict] = []
        self.chunks: list[dict] = []

    def handle_chat_completions(self, request: dict, callback: Callable[[object], bool], /) -> None:
        self.requests.append(request)
        if self.endless:
            request = request | {"ignore_eos": True}

        def look(chunk: dict) -> bool:
            self.chunks.append(chunk)
            return callback(chunk)

        self.server.handle_chat_completions(request, look)

    @property
    def texts(self) -> list[str]:
        deltas = [choice["delta"] for chunk in self.chunks for choice in chunk.get("choices", [])]
        return [delta["content"] for delta in deltas if delta.get("content")]


def spy_on(engine: LocalEngine, *, endless: bool = False) -> SpyServer:
    spy = SpyServer(engine._server, endless=endless)
    engine._server = spy
    return spy


@pytest.fixture
async def engine(weights: Path) -> AsyncIterator[LocalEngine]:
    with trio.fail_after(120):
        async with open_local(slots=SLOTS, context_tokens=1024) as engine:
            yield engine


def answer(pieces: list[tuple[int | None, str]]) -> str:
    return "".join(text for segment, text in pieces if segment is None)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` is true. Polls, because a thread makes it true."""
    while not condition():
        await trio.sleep(0.005)


async def test_info_has_the_model_and_the_honoured_sampling_fields(engine: LocalEngine) -> None:
    assert engine.info.name == "local"
    assert engine.info.models == ("smollm2-135m",)
    assert engine.info.capabilities.sampling == {"temperature", "top_p", "seed", "stop"}


async def test_pieces_arrive_one_by_one_and_the_model_counts_the_tokens(drive, engine: LocalEngine) -> None:
    spy = spy_on(engine, endless=True)
    limit = 2 * SLICE_TOKENS + 5
    pieces, finish = await drive(engine, Request(QUESTION, sampling=GREEDY, max_output_tokens=limit))
    assert [len(request["messages"]) for request in spy.requests] == [1, 2, 2]
    assert [text for _, text in pieces] == spy.texts
    assert len(pieces) == limit
    progress = next(chunk["prompt_progress"] for chunk in spy.chunks if "prompt_progress" in chunk)
    assert finish == Finish("length", finish.usage)
    assert finish.usage.input_tokens == progress["total"]
    assert finish.usage.output_tokens == limit
    assert finish.usage.reasoning_tokens == 0


async def test_the_model_can_end_before_the_limit(drive, engine: LocalEngine) -> None:
    pieces, finish = await drive(engine, Request("Say hello.", sampling=GREEDY))
    assert answer(pieces)
    assert finish.reason == "stop"


async def test_two_prompts_get_two_answers(drive, engine: LocalEngine) -> None:
    texts = [
        answer((await drive(engine, Request(prompt, sampling=GREEDY, max_output_tokens=20)))[0])
        for prompt in (QUESTION, "Write a Python function that reverses a list.")
    ]
    assert texts[0] != texts[1]


async def test_slices_give_the_same_text_as_one_request(drive, engine: LocalEngine) -> None:
    spy = spy_on(engine)
    pieces, _ = await drive(engine, Request(QUESTION, sampling=GREEDY, max_output_tokens=110))
    assert len(spy.requests) == 4
    whole = SpyServer(spy.server)
    one_request = spy.requests[0] | {"max_tokens": 110}
    await trio.to_thread.run_sync(whole.handle_chat_completions, one_request, lambda _: False)
    assert answer(pieces) == "".join(whole.texts)


async def test_a_character_of_several_tokens_is_never_split_between_slices(drive, engine: LocalEngine) -> None:
    spy = spy_on(engine, endless=True)
    # The model continues the row of smileys. Each of them is several tokens.
    row = (Message("user", "Only write smileys."), Message("assistant", "\N{PARTY POPPER}\N{JAPANESE OGRE}" * 12))
    pieces, finish = await drive(engine, Request(row, sampling=GREEDY, max_output_tokens=100))
    text = answer(pieces)
    assert not text.isascii()
    assert "\N{REPLACEMENT CHARACTER}" not in text
    assert len(pieces) < finish.usage.output_tokens  # some tokens were half a character
    text.encode()  # no lone surrogate
    whole = SpyServer(spy.server, endless=True)
    one_request = spy.requests[0] | {"max_tokens": 100}
    await trio.to_thread.run_sync(whole.handle_chat_completions, one_request, lambda _: False)
    shorter = min(len(text), len("".join(whole.texts)))  # half a character at the end of a slice is generated again
    assert text[:shorter] == "".join(whole.texts)[:shorter]
    assert shorter > 20


async def test_a_seed_repeats_the_text_at_any_pace_of_the_reader(drive, engine: LocalEngine) -> None:
    def request(seed: int) -> Request:
        return Request(QUESTION, sampling=Sampling(temperature=1.0, seed=seed), max_output_tokens=70)

    first, _ = await drive(engine, request(7))
    again, _ = await drive(engine, request(7), buffer=1)
    other, _ = await drive(engine, request(8))
    assert answer(first) == answer(again)
    assert answer(first) != answer(other)

    send, receive = trio.open_memory_channel[Piece](0)
    texts: list[str] = []

    async def generate() -> None:
        async with send:
            await engine.generate(request(7), Output(send))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(generate)
        while len(texts) < 40:
            texts.append((await receive.receive()).text)
            if len(texts) == 20:  # stall until the slot is released
                await until(lambda: engine._slots.available_tokens == SLOTS)
        texts += [piece.text async for piece in receive]
    assert "".join(texts) == answer(first)


async def test_temperature_and_top_p_are_honoured(drive, engine: LocalEngine) -> None:
    def request(**sampling) -> Request:
        return Request(QUESTION, sampling=Sampling(**sampling), max_output_tokens=30)

    greedy = answer((await drive(engine, request(temperature=0.0)))[0])
    hot = [answer((await drive(engine, request(temperature=2.0, seed=seed)))[0]) for seed in (1, 2)]
    narrow = [answer((await drive(engine, request(temperature=2.0, top_p=1e-6, seed=seed)))[0]) for seed in (1, 2)]
    assert hot[0] != hot[1]
    assert greedy not in hot
    assert narrow == [greedy, greedy]  # only the most likely token is left


async def test_a_stop_string_across_two_slices_is_found(drive, engine: LocalEngine) -> None:
    request = Request(QUESTION, sampling=GREEDY, max_output_tokens=60)
    pieces, _ = await drive(engine, request)
    whole = answer(pieces)
    stop = "".join(text for _, text in pieces[SLICE_TOKENS - 2 : SLICE_TOKENS + 2])
    stopping = Request(QUESTION, sampling=Sampling(temperature=0.0, stop=("@@", stop)), max_output_tokens=60)
    stopped, finish = await drive(engine, stopping)
    assert answer(stopped) == whole[: whole.index(stop)]
    assert (finish.reason, finish.stop_string) == ("stop", stop)
    assert finish.usage.output_tokens <= SLICE_TOKENS + 2


async def test_deep_writes_a_trace_in_segments_and_then_an_answer(drive, engine: LocalEngine) -> None:
    spy = spy_on(engine)
    pieces, finish = await drive(engine, Request(QUESTION, mode="deep", sampling=Sampling(seed=2)))
    kinds = [segment is not None for segment, _ in pieces]
    assert kinds == sorted(kinds, reverse=True)  # the trace comes first
    segments = [segment for segment, _ in pieces if segment is not None]
    assert segments == sorted(segments)
    assert set(segments) == set(range(max(segments) + 1))
    assert len(set(segments)) > 1
    for number in sorted(set(segments))[1:]:
        begin = "".join(text for segment, text in pieces if segment == number).lstrip()
        assert begin[0].isdigit()
    assert answer(pieces).strip()
    trace = "".join(text for segment, text in pieces if segment is not None)
    assert spy.requests[-1]["messages"][1] == {"role": "assistant", "content": trace}
    assert 0 < finish.usage.reasoning_tokens < finish.usage.output_tokens


async def test_a_stalled_reader_stops_the_model_within_a_slice_and_the_buffer(engine: LocalEngine) -> None:
    spy = spy_on(engine, endless=True)
    send, receive = trio.open_memory_channel[Piece](8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.generate, Request(QUESTION), Output(send))
        taken = [(await receive.receive()).text for _ in range(40)]
        await until(lambda: engine._slots.available_tokens == SLOTS)
        assert receive.statistics().current_buffer_used == 8
        generated = len(spy.texts)
        assert generated <= len(taken) + 8 + SLICE_TOKENS
        time_used = os.times()
        await trio.sleep(0.5)
        assert len(spy.texts) == generated
        assert sum(os.times()[:2]) - sum(time_used[:2]) < 0.25
        assert not any(thread.name.startswith("crucible-model") for thread in threading.enumerate())
        taken += [(await receive.receive()).text for _ in range(40)]  # the reader resumes
        assert "".join(taken) == "".join(spy.texts)[: len("".join(taken))]
        nursery.cancel_scope.cancel()


async def test_streams_without_a_slot_wait_for_one(drive, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "READER_PATIENCE_SECONDS", 60)
    spy_on(engine, endless=True)
    outputs: list[Output] = []
    done: list[str] = []

    async def run(nursery: trio.Nursery) -> None:
        send, receive = trio.open_memory_channel[Piece](64)
        outputs.append(output := Output(send))

        async def generate() -> None:
            async with send:
                await engine.generate(Request(QUESTION, sampling=GREEDY, max_output_tokens=40), output)

        nursery.start_soon(generate)
        done.append("".join([piece.text async for piece in receive]))

    async with trio.open_nursery() as nursery:
        for _ in range(SLOTS + 2):
            nursery.start_soon(run, nursery)
        await until(lambda: sum(output.is_queued for output in outputs) == 2)
        assert engine._slots.borrowed_tokens == SLOTS
    assert len(done) == SLOTS + 2
    assert all(done)
    assert sum(output.queued_seconds > 0 for output in outputs) == 2
    assert engine._slots.available_tokens == SLOTS


@pytest.mark.parametrize("stop_after", [1, 40])
async def test_cancelling_frees_the_slot(drive, engine: LocalEngine, stop_after: int) -> None:
    spy = spy_on(engine, endless=True)
    for _ in range(SLOTS + 1):
        pieces, finish = await drive(engine, Request(QUESTION), stop_after=stop_after)
        assert len(pieces) == stop_after
        assert finish is None
        assert len(spy.texts) < stop_after + SLICE_TOKENS - 1  # the model stopped within its slice
        spy.chunks.clear()
    await until(lambda: engine._slots.available_tokens == SLOTS)
    spy.chunks.clear()
    pieces, _ = await drive(engine, Request(QUESTION, max_output_tokens=5))
    assert answer(pieces) == "".join(spy.texts)  # the cancelled streams write no more text


async def test_cancelling_stops_the_model_while_it_reads_a_long_prompt(drive, engine: LocalEngine) -> None:
    spy = spy_on(engine)

    def read() -> list[tuple[int, int]]:
        progress = [chunk["prompt_progress"] for chunk in list(spy.chunks) if "prompt_progress" in chunk]
        return [(step["processed"], step["total"]) for step in progress]

    send, _ = trio.open_memory_channel[Piece](8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.generate, Request(LONG_PROMPT), Output(send))
        await until(lambda: len(read()) >= 2)
        nursery.cancel_scope.cancel()
    await until(lambda: engine._slots.available_tokens == SLOTS)
    assert read()[-1][0] < read()[-1][1] / 2
    assert engine.abandoned_threads <= 1
    _, finish = await drive(engine, Request(QUESTION, max_output_tokens=3))
    assert finish.usage.output_tokens == 3


async def test_a_prompt_that_is_too_long_fails_before_the_model_reads_it(drive, engine: LocalEngine) -> None:
    spy = spy_on(engine)
    with pytest.raises(
        EngineError, match=r"prompt_too_long: The prompt has \d+ tokens\. The model accepts at most 512"
    ):
        await drive(engine, Request(LONG_PROMPT * 2))
    with pytest.raises(EngineError, match=r"prompt_too_long: .* The model accepts at most 512"):
        await drive(engine, Request(LONG_PROMPT * 10))  # longer than the context, too
    with pytest.raises(EngineError, match=r"prompt_too_long: .* The model accepts at most 256"):
        await drive(engine, Request(LONG_PROMPT, mode="deep"))
    assert spy.texts == []
    assert engine._slots.available_tokens == SLOTS


async def test_a_full_context_ends_with_length(drive, weights: Path) -> None:
    with trio.fail_after(120):
        async with open_local(slots=1, context_tokens=256) as engine:
            spy_on(engine, endless=True)
            pieces, finish = await drive(engine, Request(QUESTION, max_output_tokens=10_000))
    assert finish.reason == "length"
    assert finish.usage.input_tokens + finish.usage.output_tokens in range(250, 260)
    assert answer(pieces)


async def test_closing_frees_threads_and_memory(drive, weights: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("reads /proc")

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    async def use() -> None:
        async with open_local(slots=SLOTS, context_tokens=1024) as engine:
            await drive(engine, Request(QUESTION, max_output_tokens=5))
            seen.append((threads(), resident_mib()))

    seen: list[tuple[int, float]] = []
    with trio.fail_after(120):
        await use()  # loads the libraries, which stay loaded
        gc.collect()
        before = threads(), resident_mib()
        for _ in range(3):
            await use()
        gc.collect()
        assert threads() <= before[0]
        assert seen[-1][0] > before[0]
        assert seen[-1][1] - before[1] > 50
        assert resident_mib() - before[1] < 30


async def test_the_models_port_rejects_all_requests(engine: LocalEngine) -> None:
    address = engine._server.listening_address
    assert address.startswith("http://127.0.0.1:")
    async with httpx.AsyncClient(timeout=None) as client:
        for path in ("/v1/chat/completions", "/completion", "/tokenize"):
            assert (await client.post(address + path, json={"prompt": "a", "messages": []})).status_code == 401
        for path in ("/slots", "/props", "/metrics"):
            assert (await client.get(address + path)).status_code in (401, 404, 501)


async def test_a_users_file_is_a_model_named_after_the_file(
    drive, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "mine.gguf").symlink_to(weights)
    with trio.fail_after(120):
        async with open_local(tmp_path / "mine.gguf", slots=1, context_tokens=256, threads=2) as engine:
            assert engine.info.models == ("mine",)
            pieces, _ = await drive(engine, Request(QUESTION, max_output_tokens=3))
            assert answer(pieces)
    assert "hash" not in caplog.text
    assert "model mine: loaded" in caplog.text


async def test_the_error_names_a_file_that_is_not_a_model(tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF" + bytes(5000))
    with pytest.raises(ConfigError, match=f"the model file {path} cannot be loaded"):
        async with open_local(path):
            pass


async def test_without_the_extra_the_error_names_three_alternatives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "find_spec", lambda _: None)
    with pytest.raises(ConfigError) as caught:
        async with open_local(cache_folder=tmp_path):
            pass
    for way in ("pip install xllamacpp", "--engine upstream --base-url", "--engine replay"):
        assert way in str(caught.value)
    assert os.listdir(tmp_path) == []  # nothing was downloaded


async def test_a_runtime_that_cannot_be_loaded_gives_the_same_error(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # its import raises ImportError
    monkeypatch.setattr(local, "find_spec", lambda _: object())
    with pytest.raises(ConfigError, match=r"xllamacpp, which cannot be loaded .*--engine replay"):
        async with open_local():
            pass
