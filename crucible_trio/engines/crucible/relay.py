"""Write the records of another server's stream to an output, and translate the way it ended.

How each end of the upstream's stream ends this one:

================================== =========================================================================
`stream.completed`                 `stream.completed` with the same finish reason and usage
`stream.incomplete`                `stream.incomplete` with the same reason and usage
`stream.failed`                    `stream.failed` with the same code, message and `retryable`
`stream.cancelled`, by anyone      `stream.failed`, `upstream_ended_early`, retryable: the client of this stream
                                   did not cancel it, and its text is not whole
no terminal record                 the same
================================== =========================================================================
"""

from __future__ import annotations

from collections.abc import AsyncIterable
from contextlib import AsyncExitStack
from typing import final

import msgspec

from crucible_trio.engine import Finish
from crucible_trio.errors import EngineError
from crucible_trio.output import Output, ToolCallOutput
from crucible_trio.records import (
    AnyRecord,
    OutputDelta,
    ReasoningDelta,
    RefusalDelta,
    StreamCancelled,
    StreamCompleted,
    StreamContinued,
    StreamFailed,
    StreamIncomplete,
    Terminal,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    UpstreamFields,
)


@final
class RecordRelay:
    """Relays the records of one stream.

    Args:
        output: Takes the pieces.

    Attributes:
        skipped: Records of types that only a later version knows.
    """

    def __init__(self, output: Output) -> None:
        self.skipped = 0
        self._output = output
        self._calls = AsyncExitStack()  # holds the open tool call
        self._call: ToolCallOutput | None = None
        self._segment = -1  # of this stream's trace
        self._their_segment: int | None = None

    async def run(self, records: AsyncIterable[AnyRecord]) -> None:
        """Write all records. Reads no record before the one before it is written.

        Args:
            records: From record 1 on, without records of unknown types.

        Raises:
            EngineError: `upstream_invalid_response`: the records break the protocol.

        Cancellation: a tool call that is open is not whole.
        """
        seq = 0
        async with self._calls:
            async for record in records:
                self.skipped += record.seq - seq - 1
                seq = record.seq
                try:
                    await self._write(record)
                except ValueError as error:  # a name or an id that no output takes
                    raise _invalid() from error
            await self._cut_call()

    async def _write(self, record: AnyRecord) -> None:
        match record:
            case OutputDelta():
                await self._cut_call()
                await self._output.delta(record.delta, record.logprobs)
            case ReasoningDelta():
                await self._cut_call()
                await self._output.reasoning(record.delta, self._next_segment(record.segment))
            case ToolCallDelta() if self._call is not None:
                await self._call.arguments(record.delta)
            case ToolCallStarted():
                await self._cut_call()
                self._call = await self._calls.enter_async_context(self._output.tool_call(record.id, record.name))
            case ToolCallDone() if self._call is not None:
                await self._leave_call()
            case RefusalDelta():
                await self._cut_call()
                await self._output.refusal(record.delta)
            case StreamContinued():
                await self._cut_call()
                await self._output.continued(record.characters)
            case UpstreamFields():
                await self._cut_call()
                await self._output.upstream_fields(record.at, record.fields)
            case ToolCallDelta() | ToolCallDone():
                raise _invalid()
            case _:
                pass  # the recorder of this stream writes its own

    def _next_segment(self, theirs: int) -> int:
        # Their numbers have a hole where a cancelled call left out a piece. An output takes none.
        if theirs != self._their_segment:
            self._their_segment = theirs
            self._segment += 1
        return self._segment

    async def _cut_call(self) -> None:
        """Another record comes, so the model did not end the open call."""
        if self._call is not None:
            self._call.cut()
            await self._leave_call()

    async def _leave_call(self) -> None:
        self._call = None
        await self._calls.pop_all().aclose()


def finish_of(terminal: Terminal | None) -> Finish:
    """The result of a stream that ended with this record. The module's table has the rules.

    Raises:
        EngineError: The stream failed, or its text is not whole.
    """
    match terminal:
        case StreamCompleted():
            return Finish(terminal.finish_reason, terminal.usage, terminal.stop_string)
        case StreamIncomplete():
            return Finish(terminal.reason, terminal.usage)
        case StreamFailed(error=error):
            raise EngineError(**msgspec.structs.asdict(error))
        case StreamCancelled(by="shutdown"):
            raise _not_whole("The upstream server is shutting down.")
        case StreamCancelled():
            raise _not_whole("The upstream server's stream was cancelled there.")
        case None:
            raise _not_whole("The upstream server's stream ended without a terminal record.")


def _not_whole(message: str) -> EngineError:
    return EngineError("upstream_ended_early", message, retryable=True)


def _invalid() -> EngineError:
    return EngineError("upstream_invalid_response", "The upstream server's stream breaks the protocol.")
