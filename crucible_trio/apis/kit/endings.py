"""How an answer ended, for the APIs that have one word for it."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

from crucible_trio.records import StreamCompleted, Terminal

CONTENT_FILTER: Final = "content_filter"
"""The finish reason of an upstream whose filter stopped the model. The answer is cut and must not look complete."""

Ending: TypeAlias = Literal["cut", "filtered", "calls", "stopped"]
"""`cut`: a limit ended it, or a tool call broke off. `calls`: it has tool calls, and all of them are whole."""


def ending_of(terminal: Terminal, *, whole_calls: int, open_calls: int) -> Ending:
    """How a stream ended that did not fail.

    Args:
        terminal: Its last record.
        whole_calls: How many tool calls are whole.
        open_calls: How many broke off.
    """
    if not isinstance(terminal, StreamCompleted):
        return "cut"
    if terminal.finish_reason == CONTENT_FILTER:
        return "filtered"  # also after a call: the filter stopped the model
    if open_calls:
        return "cut"  # a call that broke off must not be executed
    return "calls" if whole_calls else "stopped"
