"""When the engine stops waiting for more of a body, on a clock that jumps."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import MockClock

from crucible_trio.batching import Batcher
from crucible_trio.content import Piece
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream.response import END_TIMEOUT, USAGE_TIMEOUT, read_error_response, relay_completion
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.engines.upstream.think import ThinkSplitter
from crucible_trio.errors import EngineError
from crucible_trio.http import BodySink, ConnectionLostError
from crucible_trio.http.headers import Headers
from crucible_trio.output import Output
from crucible_trio.settings.apis import ApiSettings
from crucible_trio.timers import Timers

from .reads import Parts, join
from .test_reading import A, B, D, R, S, answer, chunk

EARLY = chunk("stop", role="assistant", content="")
CUT = ConnectionLostError("")
SILENCE = None


class SlowBody:
    """Sends each part after its delay in seconds, then ends as it promised. `SILENCE` as a part never comes."""

    has_promised_end = True

    def __init__(self, *script: tuple[float, bytes | Exception | None]) -> None:
        self._script = list(script)

    async def read(self) -> bytes:
        if not self._script:
            return b""
        delay, part = self._script[0]
        await trio.sleep(math.inf if part is SILENCE else delay)
        del self._script[0]
        if isinstance(part, Exception):
            raise part
        assert part is not None
        return part

    async def pass_on(self, sink: BodySink) -> bool:
        while data := await self.read():
            if not sink.take(data):
                return False
        return True


async def relay(*script: tuple[float, bytes | Exception | None]) -> tuple[Parts, Finish | EngineError, float]:
    """The text, the end, and the seconds that it took."""
    send, receive = trio.open_memory_channel[Piece](math.inf)
    end: Finish | EngineError
    begin = trio.current_time()
    batcher = Batcher(Timers())
    trio.lowlevel.add_instrument(batcher)  # without it, no piece is written outside of the engine's task
    try:
        end = await relay_completion(SlowBody(*script), Output(send, batcher), ThinkSplitter(), SkippedFields())
    except EngineError as error:
        end = error
    finally:
        trio.lowlevel.remove_instrument(batcher)
    pieces = []
    while receive.statistics().current_buffer_used:
        pieces.append(receive.receive_nowait())
    return join(pieces), end, trio.current_time() - begin


async def test_text_that_withdraws_a_finish_ends_its_timeout(autojump_clock: MockClock) -> None:
    words = [(USAGE_TIMEOUT / 3, chunk(content="b"))] * 9
    assert (await relay((0, A), (0, S), *words, (0, S), (0, D)))[:2] == (answer("abbbbbbbbb"), Finish("stop"))


async def test_text_after_an_early_finish_is_not_lost_however_late_it_comes(autojump_clock: MockClock) -> None:
    words = [(1.0, chunk(content="a"))] * 7
    assert (await relay((0, EARLY), *words, (1, S), (0, D)))[:2] == (answer("aaaaaaa"), Finish("stop"))
    assert (await relay((0, EARLY), (7, A), (1000, B), (0, S + D)))[:2] == (answer("ab"), Finish("stop"))
    every = [(7.0, chunk("stop", content="a"))] * 7
    assert (await relay(*every, (7, D)))[:2] == (answer("aaaaaaa"), Finish("stop"))
    assert (await relay((0, R + A), (0, chunk("tool_calls")), (7, B), (0, S), (0, D)))[0] == answer("ab")
    assert (await relay((0, R + A + S), (7, B), (1000, A), (0, S + D)))[0] == answer("aba")


async def test_a_cut_after_an_early_finish_is_an_early_end(autojump_clock: MockClock) -> None:
    for script in (
        [(0, EARLY), (1, A), (1, CUT)],
        [(0, EARLY), (1, A)],
        [(0, EARLY), (1, CUT)],
        [(0, EARLY)],
        [(0, R + A + S), (1, B), (1000, CUT)],
        [(0, R + chunk("stop", content="a")), (1, CUT)],
    ):
        _, end, _ = await relay(*script)
        assert isinstance(end, EngineError)
        assert (end.code, end.retryable) == ("upstream_ended_early", True)


@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        ([(0, R + A + S)], 0),
        ([(0, R + A + S), (0, SILENCE)], USAGE_TIMEOUT),
        ([(0, R + A + S), (1, b":\n\n"), (1, b":\n\n"), (0, SILENCE)], USAGE_TIMEOUT),
        ([(0, R + A + S), (1, D), (0, SILENCE)], 1 + END_TIMEOUT),
        ([(0, R + A + S + D)], 0),
        ([(0, R + A + S), (1, CUT)], 1),
        ([(0, chunk("stop", content="a")), (100, D), (0, SILENCE)], 100 + END_TIMEOUT),
    ],
)
async def test_a_whole_answer_waits_so_long_for_the_rest(
    autojump_clock: MockClock, script: list[tuple[float, bytes | Exception | None]], seconds: float
) -> None:
    assert await relay(*script) == (answer("a"), Finish("stop"), pytest.approx(seconds))


async def test_after_a_failure_nothing_is_waited_for(autojump_clock: MockClock) -> None:
    for last in (chunk("error"), D):
        text, end, seconds = await relay((1, R + A), (0, last), (0, SILENCE))
        assert (text, seconds) == (answer("a"), 1)
        assert isinstance(end, EngineError)


async def test_the_body_of_an_error_that_does_not_end_is_not_waited_for_as_long_as_a_client_is_held(
    autojump_clock: MockClock,
) -> None:
    class ErrorResponse(SlowBody):
        status = 429
        headers = Headers([("Retry-After", "9")])

    begin = trio.current_time()
    body = ErrorResponse((0, b'{"error": {"code": "rate_limit_exceeded"}}'), (0, SILENCE))
    error, content = await read_error_response(body)  # type: ignore[arg-type]
    assert (error.status, error.retry_after) == (429, 9)
    assert b"rate_limit" in content
    # Twice: the first error may refuse a field, and the second request may be refused too.
    assert 2 * (trio.current_time() - begin) < ApiSettings().hold_seconds


async def test_a_call_with_a_name_that_no_output_takes_is_an_invalid_response(autojump_clock: MockClock) -> None:
    call = {"index": 0, "id": "call_1", "function": {"name": "n" * 257, "arguments": "{}"}}
    text, end, _ = await relay((0, R + A + chunk(tool_calls=[call]) + S + D))
    assert text == answer("a")
    assert isinstance(end, EngineError)
    assert end.code == "upstream_invalid_response"
