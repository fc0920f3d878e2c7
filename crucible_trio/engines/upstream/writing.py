"""Write the pieces of a completion to a stream's output, tool calls included."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, final

from crucible_trio.content import (
    Continued,
    Piece,
    Reasoning,
    Refusal,
    ServerFields,
    Text,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from crucible_trio.errors import EngineError
from crucible_trio.output import Output, ToolCallOutput


@final
class PieceWriter:
    """Writes pieces to an output. A call without its `ToolCallEnd` was cut: another piece follows, or the block ends.

    Fields wait for the next piece that is not inside a call, or for the end. They must not be the first output of a
    stream that then fails: another engine could not take it over.

    Args:
        output: Takes the pieces.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._call: ToolCallOutput | None = None
        self._fields: list[ServerFields] = []  # that wait

    async def __aenter__(self) -> Self:
        return self

    def write_nowait(self, pieces: Iterator[Piece]) -> Piece | None:
        """Write pieces without waiting, up to the first that may have to wait. Returns that one."""
        is_plain = self._call is None and not self._fields
        for piece in pieces:
            if not (is_plain and isinstance(piece, Text | Reasoning) and self._output.write_nowait(piece)):
                return piece
        return None

    async def write(self, pieces: Iterable[Piece]) -> None:
        """Write pieces. Waits and checkpoints as `Output.delta`, for each of them."""
        for piece in pieces:
            if isinstance(piece, ServerFields):
                self._fields.append(piece)
                continue
            if isinstance(piece, ToolCallArguments):
                assert self._call is not None
                await self._call.arguments(piece.text)
                continue
            await self._leave_call(is_whole=isinstance(piece, ToolCallEnd))
            if self._fields:
                await self._write_fields()
            match piece:
                case Text():
                    await self._output.delta(piece.text, piece.logprobs)
                case Reasoning():
                    await self._output.reasoning(piece.text, piece.segment)
                case Refusal():
                    await self._output.refusal(piece.text)
                case Continued():
                    await self._output.continued(piece.characters)
                case ToolCallStart():
                    self._call = await self._output.tool_call(piece.id, piece.name).__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave_call(is_whole=False)
        # After a failure, too: the answer may go on in another request, which does not bring them again.
        if kind is None or (isinstance(error, EngineError) and self._output.has_written):
            await self._write_fields()

    async def _write_fields(self) -> None:
        fields, self._fields = self._fields, []
        for piece in fields:
            await self._output.upstream_fields(piece.at, piece.fields)

    async def _leave_call(self, *, is_whole: bool) -> None:
        if (call := self._call) is not None:
            self._call = None
            if not is_whole:
                call.cut()
            await call.__aexit__(None, None, None)  # writes the end of a whole call, and otherwise nothing
