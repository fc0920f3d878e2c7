"""The engine's end of the buffer, which is the only queue between an engine and its log.

An engine awaits `output.delta`, `output.reasoning`, `output.refusal` and a tool call's `arguments`. These calls wait
while the buffer is full. That is the backpressure with which a slow client slows a model down.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final, Protocol, Self, final

import msgspec
import trio

from crucible_trio.batching import Batcher
from crucible_trio.content import (
    MAX_FIELDS_BYTES,
    Continued,
    FieldsPlace,
    Piece,
    Reasoning,
    Refusal,
    ServerFields,
    Text,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from crucible_trio.records import MAX_DEPTH, is_deeper
from crucible_trio.timers import Timers

# Both go into one record of at most 16 KiB, where a character can take six bytes.
MAX_CALL_NAME_LENGTH: Final = 256
MAX_CALL_ID_LENGTH: Final = 1024


class PieceSink(Protocol):
    """Records what an engine writes: a `Generation`."""

    def record_now(self, piece: Piece) -> bool:
        """Record a piece that came alone, without the buffer. Returns False if it must go through the buffer."""

    def open_buffer(self) -> trio.MemorySendChannel[Piece]:
        """Open the buffer, before its first piece."""

    def piece_buffered(self) -> None:
        """The buffer has a new piece, or is full."""

    def tokens_counted(self, total: int) -> None:
        """The engine has counted the tokens that the model has generated so far."""

    def engine_changed(self, name: str) -> None:
        """Another engine has been called in place of the one before."""

    def request_accepted(self) -> None:
        """The server that the engine asks has accepted the request."""


@final
class Output:
    """Where an engine writes. Its generation opens and closes it.

    Args:
        send: The buffer. None: the sink opens it when it is needed.
        batcher: Tells when a call lets other tasks run. Without one, every call does.
        sink: Records the pieces. Without one, all pieces stay in the buffer, as in a test of an engine.

    Attributes:
        has_written: Whether the engine has written anything, into the log or only into the buffer.
        has_fallback: Whether another engine gets the request if this one fails before it has written anything. Then
            the engine does not repeat its own attempts.
        client_retries: Whether the client gets a refusal as a status and may repeat its request. An engine that asks
            another server then does not ask again after an error status. Otherwise the two would multiply their
            attempts.
    """

    def __init__(
        self,
        send: trio.MemorySendChannel[Piece] | None,
        batcher: Batcher | None = None,
        sink: PieceSink | None = None,
        *,
        client_retries: bool = False,
    ) -> None:
        self.has_written = False
        self.has_fallback = False
        self.client_retries = client_retries
        self._send = send
        self._batcher = batcher or Batcher(Timers())
        self._sink = sink or _BufferOnly()
        self._pass = -1  # the scheduler's pass in which the last piece came
        self._pieces = 0  # that came in that pass
        self._segment = -1  # of the last piece of the trace
        self._call: ToolCallOutput | None = None  # the open one
        self._queued_since: float | None = None
        self._queued_seconds = 0.0

    async def delta(self, text: str, logprobs: Sequence[object] | None = None) -> None:
        """Write a piece of the answer.

        Waits while the buffer is full.

        Args:
            text: The piece.
            logprobs: Log probabilities of its tokens, as values that JSON can hold.

        Raises:
            TypeError, ValueError: `text` is not a `str`, or JSON cannot hold `logprobs`.
            RuntimeError: A tool call is open.
            trio.ClosedResourceError: The stream has ended.

        Checkpoints: every call checks for cancellation. It lets other tasks run when it waits. For an engine that never
        waits, it also does so at every 64th piece and every 5 ms.
        Cancellation: a piece whose call was cancelled may or may not be in the log. One whose call has returned is.
        """
        if self._call is not None:
            raise _call_is_open()
        if logprobs is not None:
            logprobs = _copied(logprobs)
        await self._write(Text(text, logprobs), text)

    async def reasoning(self, text: str, segment: int) -> None:
        """Write a piece of the reasoning trace. Waits, raises and checkpoints as `delta`.

        Args:
            text: The piece.
            segment: Counts from 0 without holes: the last piece's segment, or the next.

        Raises:
            ValueError: `segment` is neither.
        """
        if self._call is not None:
            raise _call_is_open()
        if segment < 0 or segment not in (self._segment, self._segment + 1):
            message = f"segment {segment} cannot follow segment {self._segment}"
            raise ValueError(message)
        if text:  # an empty piece leaves no trace of its segment, so the next may not count from it
            self._segment = segment
        await self._write(Reasoning(text, int(segment)), text)  # True counts like 1, and differs in JSON

    def write_nowait(self, piece: Text | Reasoning) -> bool:
        """Write a piece outside of the engine's task. The task must be able to be cancelled in the meantime.

        Args:
            piece: A piece that is not empty, and whose log probabilities nobody changes.

        Returns:
            Whether it was written. If not, write it with `delta` or `reasoning`, in the engine's task.

        Raises:
            RuntimeError, trio.ClosedResourceError: As `delta`.
        """
        if self._call is not None:
            raise _call_is_open()
        # As in `_write`.
        is_burst = self._pass == self._batcher.passes
        if is_burst and self._batcher.is_over(self._pieces):
            return False
        if isinstance(piece, Reasoning):
            if piece.segment not in (self._segment, self._segment + 1):
                return False
            self._segment = piece.segment
        self.has_written = True
        return self._put_nowait(piece, is_first=not is_burst)

    async def refusal(self, text: str) -> None:
        """Write a piece of the text with which the model refuses. Waits, raises and checkpoints as `delta`."""
        if self._call is not None:
            raise _call_is_open()
        await self._write(Refusal(text), text)

    async def continued(self, characters: int) -> None:
        """Say that a second request to the model goes on with the answer, because the first was cut.

        Waits, raises and checkpoints as `delta`.

        Args:
            characters: The length of the answer so far, in Unicode characters.

        Raises:
            ValueError: It is negative.
        """
        if self._call is not None:
            raise _call_is_open()
        if characters < 0:
            message = f"an answer has 0 characters or more, not {characters}"
            raise ValueError(message)
        await self._write(Continued(int(characters)), "continued")

    async def upstream_fields(self, at: FieldsPlace, fields: Mapping[str, object]) -> None:
        """Pass on fields of a model server's chunk that only its clients understand. They are not content.

        Waits, raises and checkpoints as `delta`. Without fields, nothing is written.

        Args:
            at: Where they stood in the chunk.
            fields: The fields, as values that JSON can hold: at most 4 KiB of JSON.

        Raises:
            ValueError: They are too long or too deep.
        """
        if self._call is not None:
            raise _call_is_open()
        await self._write(ServerFields(at, _copied_fields(fields)), "fields" if fields else "")

    def tool_call(self, call_id: str, name: str) -> ToolCallOutput:
        """Open a tool call: `async with output.tool_call("call_1", "weather") as call: await call.arguments(...)`.

        One call at a time. Leaving the block normally says that the call is whole. Leaving it by an exception or a
        cancellation, or after `call.cut()`, does not.

        Args:
            call_id: The call's id, at most 1,024 characters. The tool's result names it.
            name: The tool's name, at most 256 characters.

        Raises:
            TypeError: One is not a `str`.
            ValueError: One is empty or too long.
        """
        for what, value, limit in (("id", call_id, MAX_CALL_ID_LENGTH), ("name", name, MAX_CALL_NAME_LENGTH)):
            if not isinstance(value, str):
                message = f"the {what} of a tool call is a str, not {type(value).__name__}"
                raise TypeError(message)
            if not 0 < len(value) <= limit:
                message = f"the {what} of a tool call has 1 to {limit} characters, not {len(value)}"
                raise ValueError(message)
        return ToolCallOutput(self, _encodable(call_id), _encodable(name))

    def count_tokens(self, total: int) -> None:
        """Say how many tokens the model has generated for this stream so far, reasoning included.

        Over the request's `max_output_tokens` the stream ends as `incomplete`. An engine that never counts is limited
        by the byte cap of its log alone.
        """
        self._sink.tokens_counted(total)

    def engine_changed(self, name: str) -> None:
        """Say that another engine is called now. Metrics and log name it from here on.

        Args:
            name: The engine's name.
        """
        self._sink.engine_changed(name)

    def accepted(self) -> None:
        """Say that another server, which this engine asks, has accepted the request.

        For engines that declare `EngineInfo.waits_for_upstream`. The first piece says the same.
        """
        self._sink.request_accepted()

    @asynccontextmanager
    async def queued(self) -> AsyncIterator[None]:
        """Mark time spent waiting for a slot of the model. Only the `total` deadline counts it."""
        self._queued_since = trio.current_time()
        try:
            yield
        finally:
            self._queued_seconds = self.queued_seconds
            self._queued_since = None

    @property
    def is_queued(self) -> bool:
        """Whether the engine waits for a slot of the model now."""
        return self._queued_since is not None

    @property
    def queued_seconds(self) -> float:
        """How long the engine has waited for slots so far, in total."""
        if self._queued_since is None:
            return self._queued_seconds
        return self._queued_seconds + trio.current_time() - self._queued_since

    async def _write(self, piece: Piece, text: str) -> None:
        """Record a piece, or put it into the buffer. `text` is its text, or for a mark any other of its fields."""
        if type(text) is not str:  # raised here it ends the stream as `failed`, in the recorder it would be our bug
            if not isinstance(text, str):
                message = f"a piece of text is a str, not {type(text).__name__}"
                raise TypeError(message)
            piece = msgspec.structs.replace(piece, text=str.__str__(text))  # JSON does not take a subclass
        call = self._call
        if not text and not (isinstance(piece, Text) and piece.logprobs):
            # Carries nothing, but an engine relies on its call as a place where it can be cancelled.
            await trio.lowlevel.checkpoint()
            return
        self.has_written = True
        is_burst = self._pass == self._batcher.passes  # a piece has come in this pass already
        if is_burst and self._batcher.is_over(self._pieces):
            await trio.lowlevel.checkpoint()
            self._pieces = 0  # in a new pass, and still the same burst
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        # At the checkpoint, another task of the engine may have opened or left a tool call.
        if self._call is not call or (call is not None and call._has_ended and isinstance(piece, ToolCallArguments)):
            raise _call_is_open() if call is None else _call_has_ended()
        if self._put_nowait(piece, is_first=not is_burst):
            return
        assert self._send is not None
        self._sink.piece_buffered()
        try:
            await self._send.send(piece)
        except trio.BrokenResourceError:  # the generation has closed its end, which ends the stream for the engine
            raise trio.ClosedResourceError from None
        self._pass = self._batcher.passes
        self._sink.piece_buffered()

    def _put_nowait(self, piece: Piece, *, is_first: bool) -> bool:
        """Record a piece, or put it into the buffer. Returns False if the buffer is full."""
        self._pieces = 1 if is_first else self._pieces + 1
        self._pass = self._batcher.passes
        if is_first and self._sink.record_now(piece):
            return True
        if self._send is None:
            self._send = self._sink.open_buffer()
        try:
            self._send.send_nowait(piece)
        except trio.WouldBlock:
            return False
        except trio.BrokenResourceError:
            raise trio.ClosedResourceError from None
        self._sink.piece_buffered()
        return True


@final
class ToolCallOutput:
    """One tool call that an engine writes. `Output.tool_call` makes it. Enter it once, with `async with`."""

    def __init__(self, output: Output, call_id: str, name: str) -> None:
        self._output = output
        self._start = ToolCallStart(call_id, name)
        self._has_ended = False

    async def __aenter__(self) -> Self:
        output = self._output
        if output._call is not None:
            raise _call_is_open()
        output._call = self
        try:
            await output._write(self._start, self._start.id)
        except BaseException:
            output._call = None
            raise
        return self

    async def arguments(self, text: str) -> None:
        """Write a piece of the arguments: JSON text as the model wrote it, valid or not. Waits as `Output.delta`.

        Raises:
            TypeError: `text` is not a `str`.
            RuntimeError: The call has been left or cut.
            trio.ClosedResourceError: The stream has ended.
        """
        if self._output._call is not self or self._has_ended:
            raise _call_has_ended()
        await self._output._write(ToolCallArguments(text), text)

    def cut(self) -> None:
        """Say that the model stopped in the middle of the call. Leaving the block then does not make it whole."""
        self._has_ended = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_whole = kind is None and not self._has_ended
        self._has_ended = True
        try:
            if is_whole:
                await self._output._write(ToolCallEnd(), self._start.id)
        finally:
            self._output._call = None  # not earlier: another task of the engine could write before the end


def _call_is_open() -> RuntimeError:
    # The arguments of a call are contiguous in the log: clients take a call for done when something else begins.
    return RuntimeError("a tool call is open: leave its block before writing anything else")


def _call_has_ended() -> RuntimeError:
    return RuntimeError("the tool call has ended")


def _copied(logprobs: object) -> list[object]:
    """A copy, because the engine may change its own while the piece waits. Raises here if JSON cannot hold it."""
    if not isinstance(logprobs, list | tuple):
        message = f"log probabilities are a list or a tuple, not {type(logprobs).__name__}"
        raise TypeError(message)
    copied = msgspec.json.decode(msgspec.json.encode(logprobs), type=list[object])
    if is_deeper(copied):
        message = f"log probabilities are more than {MAX_DEPTH} levels deep"
        raise ValueError(message)
    return copied


def _copied_fields(fields: Mapping[str, object]) -> dict[str, object]:
    """A copy, as in `_copied`."""
    encoded = msgspec.json.encode(fields)
    if len(encoded) > MAX_FIELDS_BYTES:
        message = f"fields take at most {MAX_FIELDS_BYTES} bytes of JSON, not {len(encoded)}"
        raise ValueError(message)
    copied = msgspec.json.decode(encoded, type=dict[str, object])
    if is_deeper(copied):
        message = f"fields are more than {MAX_DEPTH} levels deep"
        raise ValueError(message)
    return copied


class _BufferOnly:
    """A sink that records nothing."""

    def record_now(self, piece: Piece) -> bool:
        return False

    def open_buffer(self) -> trio.MemorySendChannel[Piece]:
        raise NotImplementedError  # such an output is made with its buffer

    def piece_buffered(self) -> None:
        pass

    def tokens_counted(self, total: int) -> None:
        pass

    def engine_changed(self, name: str) -> None:
        pass

    def request_accepted(self) -> None:
        pass


def _encodable(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
