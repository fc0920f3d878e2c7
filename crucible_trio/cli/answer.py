"""Shows the records of a stream: trace and answer on standard output, notes on standard error."""

from __future__ import annotations

from typing import final

from rich.console import Console

from crucible_trio.cli.exit_codes import ANSWERED, FAILED, STOPPED
from crucible_trio.cli.rendering import Display
from crucible_trio.records import (
    AnyRecord,
    OutputDelta,
    ReasoningDelta,
    RefusalDelta,
    StreamCancelled,
    StreamCompleted,
    StreamFailed,
    StreamIncomplete,
    Terminal,
    ToolCallDelta,
    ToolCallStarted,
)


@final
class AnswerPrinter:
    """Shows records in order, after an offset.

    Args:
        display: Shows the text.
        after: The offset.
        with_trace: Whether to show the reasoning trace.

    Attributes:
        last_seq: The last record that is shown.
        terminal: The terminal record, or None until it arrives.
    """

    def __init__(self, display: Display, *, after: int = 0, with_trace: bool = True) -> None:
        self.last_seq = after
        self.terminal: Terminal | None = None
        self._display = display
        self._with_trace = with_trace
        self._display.muted = after > 0
        # Lines are not wrapped, because users copy a command from them.
        self._notes = Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._part: str | None = None

    def add(self, record: AnyRecord) -> None:
        """Show a record. Those up to the offset only decide how the next ones look."""
        if self._display.muted and record.seq > self.last_seq:
            self._display.unmute()
        self.last_seq = max(self.last_seq, record.seq)
        match record:
            case ReasoningDelta() if not self._with_trace:
                pass
            case ReasoningDelta(delta=delta):
                self._begin("trace", "Reasoning\n")
                self._display.other(delta, "dim")
            case OutputDelta(delta=delta) | RefusalDelta(delta=delta):
                self._begin("answer", "Answer\n" if self._part else "")
                self._display.answer(delta)
            case ToolCallStarted(index=index, name=name):
                self._begin(f"tool call {index}", "Tool call ")
                self._display.other(f"{name} ")
            case ToolCallDelta(delta=delta):
                self._display.other(delta)
            case StreamCompleted() | StreamIncomplete() | StreamFailed() | StreamCancelled():
                self.terminal = record

    def finish(self) -> int:
        """Say how the stream ended.

        Returns:
            The exit code.
        """
        self._display.end()
        match self.terminal:
            case StreamCompleted():
                return ANSWERED
            case StreamIncomplete(reason=reason):
                self.note(f"incomplete: {reason}")
                return ANSWERED
            case StreamCancelled(by=by):
                self.note(f"cancelled by {by}")
                return STOPPED
            case StreamFailed(error=error):
                self.note(f"failed: {error.message} ({error.code})", style="red")
        return FAILED

    def break_off(self, *notes: str) -> None:
        """Show everything that has arrived, and say why there is no more."""
        self._display.break_off()
        for note in notes:
            self.note(note, style="red")

    def note_reconnect(self, last_seq: int) -> None:
        """Say that the stream goes on after a cut."""
        self.note(f"reconnected at record {last_seq}")

    def note(self, text: str, *, style: str = "yellow") -> None:
        """Print a line on standard error."""
        if self._notes.is_terminal:
            self._display.pause()
        self._notes.print(text, style=style)

    def _begin(self, part: str, label: str) -> None:
        if self._part == part:
            return
        if self._part is not None:
            self._display.part()
        self._part = part
        self._display.other(label, "bold")

    async def run(self) -> None:
        """Draw from time to time, until cancelled."""
        await self._display.run()
