"""Answers that belong to a message which the page already has: those after the results of tool calls.

The AI SDK adds such an answer to its message, but a page that resumes begins the message anew. So a replay begins with
the parts that the message had before, which the request of the page contains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import final

import msgspec
from msgspec import UNSET

from crucible_trio.apis.ui import chunks
from crucible_trio.apis.ui.messages import ToolPart, UIMessage, encode_value, read_tool_part
from crucible_trio.records import encode_json


@final
class Continued(msgspec.Struct, frozen=True):
    """The message that an answer belongs to, as the facts of its stream hold it.

    Attributes:
        message_id: Its id.
        earlier: The chunks that make its parts again. Parts that this server never sends are left out.
    """

    message_id: str
    earlier: list[msgspec.Raw]


def continue_message(message: UIMessage, at: str) -> Continued | None:
    """The message for an answer that belongs to it. None if it has no id.

    Args:
        message: A message of the page.
        at: The place of its parts in the body, as a dotted path.

    Raises:
        InvalidRequestError: A part is invalid.
    """
    if not message.id:
        return None
    made = (chunk for index, part in enumerate(message.parts) for chunk in _make_again(part, index, f"{at}[{index}]"))
    return Continued(message.id, [msgspec.Raw(encode_json(chunk)) for chunk in made])


def _make_again(part: Mapping[str, object], index: int, at: str) -> Iterator[chunks.Chunk]:
    part_id, text = f"earlier-{index}", str(part.get("text", ""))
    match part.get("type"):
        case "step-start":
            yield chunks.StartStep()
        case "text":
            yield chunks.TextStart(id=part_id)
            yield chunks.TextDelta(id=part_id, delta=text)
            yield chunks.TextEnd(id=part_id)
        case "reasoning":
            yield chunks.ReasoningStart(id=part_id)
            yield chunks.ReasoningDelta(id=part_id, delta=text)
            yield chunks.ReasoningEnd(id=part_id)
        case _ if (call := read_tool_part(part, at)) is not None:
            yield from _call_again(call)


def _call_again(call: ToolPart) -> Iterator[chunks.Chunk]:
    """A call and its result. Never with `tool-input-available`, for which a page would run the tool again."""
    yield chunks.ToolInputStart(tool_call_id=call.tool_call_id, tool_name=call.name, dynamic=call.is_dynamic or UNSET)
    yield chunks.ToolInputDelta(tool_call_id=call.tool_call_id, input_text_delta=call.arguments)
    match call.state:
        case "output-available":
            output = msgspec.Raw(encode_value(call.output))
            yield chunks.ToolOutputAvailable(tool_call_id=call.tool_call_id, output=output)
        case "output-error":
            yield chunks.ToolOutputError(tool_call_id=call.tool_call_id, error_text=call.error_text or "")
        case _ if call.result is not None:
            yield chunks.ToolOutputDenied(tool_call_id=call.tool_call_id)
