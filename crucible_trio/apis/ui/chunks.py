"""The chunks of a UI message stream, and their bytes.

Only chunks that both AI SDK 6 and 7 know: any other `type` ends the stream with an error in the client.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, final

import msgspec
from msgspec import UNSET, UnsetType

from crucible_trio import sse

FinishReason: TypeAlias = Literal["stop", "length", "content-filter", "tool-calls", "error", "other"]

DONE: Final = sse.encode_line(b"[DONE]")
"""The end of the body. It is no chunk."""


class Chunk(msgspec.Struct, frozen=True, kw_only=True, rename="camel", tag_field="type"):
    """One event of a UI message stream."""


@final
class StartMetadata(msgspec.Struct, frozen=True, rename="camel"):
    """The metadata that a message has from its start on. `created_at` is Unix time in milliseconds."""

    model: str
    stream_id: str
    created_at: int


@final
class MessageUsage(msgspec.Struct, frozen=True, rename="camel"):
    """The token counts of one stream, by the AI SDK's names."""

    input_tokens: int | UnsetType = UNSET
    output_tokens: int | UnsetType = UNSET
    total_tokens: int | UnsetType = UNSET
    reasoning_tokens: int | UnsetType = UNSET


@final
class FinishMetadata(msgspec.Struct, frozen=True, rename="camel"):
    """The metadata that a message gets at its end."""

    usage: MessageUsage


@final
class Start(Chunk, frozen=True, tag="start"):
    """The message begins, or goes on if the page has a message with this id."""

    message_id: str
    message_metadata: StartMetadata


@final
class StartStep(Chunk, frozen=True, tag="start-step"):
    """One answer of the model begins."""


@final
class TextStart(Chunk, frozen=True, tag="text-start"):
    """A part with text begins."""

    id: str


@final
class TextDelta(Chunk, frozen=True, tag="text-delta"):
    """More text."""

    id: str
    delta: str


@final
class TextEnd(Chunk, frozen=True, tag="text-end"):
    """The part is complete."""

    id: str


@final
class ReasoningStart(Chunk, frozen=True, tag="reasoning-start"):
    """A part with a segment of the trace begins."""

    id: str


@final
class ReasoningDelta(Chunk, frozen=True, tag="reasoning-delta"):
    """More of the segment."""

    id: str
    delta: str


@final
class ReasoningEnd(Chunk, frozen=True, tag="reasoning-end"):
    """The segment is complete."""

    id: str


@final
class ToolInputStart(Chunk, frozen=True, tag="tool-input-start"):
    """The model calls a tool. `dynamic` marks a tool that the request did not declare."""

    tool_call_id: str
    tool_name: str
    dynamic: bool | UnsetType = UNSET


@final
class ToolInputDelta(Chunk, frozen=True, tag="tool-input-delta"):
    """More of the arguments' JSON text."""

    tool_call_id: str
    input_text_delta: str


@final
class ToolInputAvailable(Chunk, frozen=True, tag="tool-input-available"):
    """The call is whole. The page runs the tool."""

    tool_call_id: str
    tool_name: str
    input: msgspec.Raw
    dynamic: bool | UnsetType = UNSET


@final
class ToolInputError(Chunk, frozen=True, tag="tool-input-error"):
    """The call is whole, but its arguments are not JSON."""

    tool_call_id: str
    tool_name: str
    input: str
    error_text: str
    dynamic: bool | UnsetType = UNSET


@final
class ToolOutputAvailable(Chunk, frozen=True, tag="tool-output-available"):
    """The result of an earlier call, which the page had sent."""

    tool_call_id: str
    output: msgspec.Raw


@final
class ToolOutputError(Chunk, frozen=True, tag="tool-output-error"):
    """The failure of an earlier call, which the page had sent."""

    tool_call_id: str
    error_text: str


@final
class ToolOutputDenied(Chunk, frozen=True, tag="tool-output-denied"):
    """The user did not allow an earlier call."""

    tool_call_id: str


@final
class FinishStep(Chunk, frozen=True, tag="finish-step"):
    """The answer of the model is over."""


@final
class Finish(Chunk, frozen=True, tag="finish"):
    """The stream is over. Every body that was not cut has this chunk."""

    finish_reason: FinishReason
    message_metadata: FinishMetadata | UnsetType = UNSET


@final
class Abort(Chunk, frozen=True, tag="abort"):
    """A client stopped the stream."""

    reason: str


@final
class Error(Chunk, frozen=True, tag="error"):
    """The stream failed. `useChat` shows the text as `error.message`."""

    error_text: str
