"""The upstream engine against llama.cpp's server with a real model: a server that is not part of this project."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import trio

from crucible_trio.content import Piece
from crucible_trio.engines.upstream import open_upstream
from crucible_trio.errors import EngineError
from crucible_trio.output import Output
from crucible_trio.request import Request, Sampling

pytest.importorskip("xllamacpp")

pytestmark = pytest.mark.slow

QUESTION = "Why is the sky blue?"
REPEATABLE = Sampling(temperature=0, seed=1)
BUDGET = {"thinking_budget_tokens": 40}


@pytest.fixture(scope="module")
def llama(weights: Path) -> Iterator[str]:
    """The base URL of a server with one slot."""
    command = [sys.executable, str(Path(__file__).with_name("llama_server.py")), str(weights)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            url = process.stdout.readline().decode().strip()  # empty if the process ends first
            assert url.startswith("http://127.0.0.1:")
            yield url
        finally:
            process.kill()


def texts(pieces: list[tuple[int | None, str]]) -> tuple[str, str]:
    """Join the trace and the answer. Asserts that the trace comes first."""
    kinds = [segment is None for segment, _ in pieces]
    assert kinds == sorted(kinds)
    return (
        "".join(text for segment, text in pieces if segment is not None),
        "".join(text for segment, text in pieces if segment is None),
    )


async def test_deep_has_the_same_trace_sent_separately_and_inline(drive, llama: str) -> None:
    request = Request(QUESTION, mode="deep", sampling=REPEATABLE, max_output_tokens=200)
    results = []
    for extra in (BUDGET, BUDGET | {"reasoning_format": "none"}):
        with trio.fail_after(60):
            async with open_upstream(llama, extra_body=extra) as engine:
                pieces, finish = await drive(engine, request)
        trace, answer = texts(pieces)
        assert trace.strip()
        assert answer.strip()
        assert "think>" not in trace + answer
        assert finish.reason == "stop"
        results.append((trace.strip(), answer.strip()))
    assert results[0] == results[1]


async def test_standard_has_no_trace_and_usage_comes_from_the_server(drive, llama: str) -> None:
    for extra in ({}, {"reasoning_format": "none"}):
        with trio.fail_after(60):
            async with open_upstream(llama, extra_body=extra) as engine:
                assert engine.info.models == ("smollm2",)
                pieces, finish = await drive(engine, Request(QUESTION, sampling=REPEATABLE, max_output_tokens=24))
        trace, answer = texts(pieces)
        assert trace == ""
        assert answer.strip()
        assert "think>" not in answer
        assert finish.reason == "length"
        assert finish.usage.output_tokens == 24
        assert finish.usage.input_tokens is not None
        assert finish.usage.input_tokens > len(QUESTION.split())


async def test_max_output_tokens_includes_the_trace(drive, llama: str) -> None:
    with trio.fail_after(60):
        async with open_upstream(llama) as engine:
            pieces, finish = await drive(
                engine, Request(QUESTION, mode="deep", sampling=REPEATABLE, max_output_tokens=8)
            )
    trace, answer = texts(pieces)
    assert trace.strip()
    assert answer == ""
    assert (finish.reason, finish.usage.output_tokens) == ("length", 8)


async def test_a_stop_string_ends_the_text_before_it(drive, llama: str) -> None:
    with trio.fail_after(60):
        async with open_upstream(llama) as engine:
            whole, _ = await drive(engine, Request(QUESTION, sampling=REPEATABLE, max_output_tokens=24))
            answer = texts(whole)[1]
            stop = answer.split()[4]
            sampling = Sampling(temperature=0, seed=1, stop=(stop,))
            cut, finish = await drive(engine, Request(QUESTION, sampling=sampling, max_output_tokens=24))
    assert texts(cut)[1].rstrip() == answer[: answer.index(stop)].rstrip()
    assert finish.reason == "stop"


@pytest.mark.parametrize("stop_after", [1, 5])
async def test_cancelling_frees_the_only_slot_of_the_server(drive, llama: str, stop_after: int) -> None:
    with trio.fail_after(60):
        async with open_upstream(llama, extra_body={"ignore_eos": True}) as engine, httpx.AsyncClient() as client:
            pieces, _ = await drive(engine, Request(QUESTION), stop_after=stop_after)
            assert len(pieces) == stop_after
            slots = llama.removesuffix("/v1") + "/slots"
            while (await client.get(slots)).json()[0]["is_processing"]:
                await trio.sleep(0.02)
            assert (await client.get(slots)).json()[0]["id_task"] >= 0  # proves that this slot was in use
            pieces, _ = await drive(engine, Request(QUESTION, max_output_tokens=4))
            assert pieces


async def test_a_prompt_that_is_too_long_is_rejected_with_the_servers_identifier(drive, llama: str) -> None:
    output = Output(trio.open_memory_channel[Piece](1)[0])
    with trio.fail_after(60):
        async with open_upstream(llama) as engine:
            with pytest.raises(EngineError) as caught:
                await engine.generate(Request("sky " * 2000), output)
    assert (caught.value.code, caught.value.retryable) == ("upstream_rejected", False)
    assert caught.value.message.endswith("(HTTP 400, exceed_context_size_error).")
