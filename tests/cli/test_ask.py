"""What `crucible ask` prints for each kind of content, and for messages that look like markup."""

import pytest

from crucible_trio.cli.answer import AnswerPrinter
from crucible_trio.cli.rendering import open_display
from crucible_trio.records import (
    AnyRecord,
    ErrorInfo,
    OutputDelta,
    ReasoningDelta,
    RefusalDelta,
    StreamCompleted,
    StreamContinued,
    StreamFailed,
    Timings,
    ToolCallDelta,
    ToolCallDone,
    ToolCallStarted,
    Usage,
)

END = (Usage(), Timings(None, 1.0))


@pytest.mark.parametrize(
    ("records", "printed"),
    [
        ([OutputDelta(2, "Hel"), OutputDelta(3, "lo")], "Hello\n"),
        ([OutputDelta(2, "Hel"), StreamContinued(3, 3), OutputDelta(4, "lo")], "Hello\n"),
        ([ReasoningDelta(2, 0, "Hm"), OutputDelta(3, "Hi")], "Reasoning\nHm\n\nAnswer\nHi\n"),
        ([RefusalDelta(2, "I cannot.")], "I cannot.\n"),
        (
            [
                OutputDelta(2, "Wait."),
                ToolCallStarted(3, 0, "c", "weather"),
                ToolCallDelta(4, 0, "{}"),
                ToolCallDone(5, 0),
            ],
            "Wait.\n\nTool call weather {}\n",
        ),
        ([ToolCallStarted(2, 0, "c", "now"), ToolCallDelta(3, 0, "{}"), ToolCallDone(4, 0)], "Tool call now {}\n"),
    ],
)
def test_every_kind_of_content_is_printed(
    records: list[AnyRecord], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printer = AnswerPrinter(open_display(markdown=True))
    for record in (*records, StreamCompleted(9, "stop", *END)):
        printer.add(record)
    assert printer.finish() == 0
    assert capsys.readouterr() == (printed, "")


@pytest.mark.parametrize("message", ["no [/INST] here", "x[local]", "[bold]"])
def test_a_message_that_looks_like_markup_is_printed_unchanged(
    message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    printer = AnswerPrinter(open_display(markdown=True))
    printer.add(StreamFailed(2, ErrorInfo("code", message, False), *END))
    assert printer.finish() == 1
    assert capsys.readouterr().err == f"failed: {message} (code)\n"
