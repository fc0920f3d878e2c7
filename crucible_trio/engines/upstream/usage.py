"""Read a server's token counts, wherever it puts them. No trio: nothing here waits."""

from __future__ import annotations

from typing import Any

from crucible_trio.records import Usage


def merge_usage(before: Usage, fields: dict[str, Any]) -> Usage:
    """The token counts after a report. An invalid or missing count keeps its value: it must not lose the answer.

    Args:
        before: The counts so far.
        fields: The report, with the names of chat completions or of Responses.
    """
    details = fields.get("completion_tokens_details") or fields.get("output_tokens_details")
    reasoning = _count(details, "reasoning_tokens")
    return Usage(
        _given(_count(fields, "prompt_tokens"), _count(fields, "input_tokens"), before.input_tokens),
        _given(_count(fields, "completion_tokens"), _count(fields, "output_tokens"), before.output_tokens),
        _given(reasoning, _count(fields, "reasoning_tokens"), before.reasoning_tokens),
    )


def _given(*counts: int | None) -> int | None:
    return next((count for count in counts if count is not None), None)


def _count(fields: object, name: str) -> int | None:
    value = fields.get(name) if isinstance(fields, dict) else None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 15:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 2**53:
        return None
    return int(value)
