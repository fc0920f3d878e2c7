"""The message object, the events of the Messages API that this server sends, and their bytes."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, final

import msgspec

from crucible_trio.apis.anthropic.errors import AnthropicError
from crucible_trio.apis.kit.ids import stream_id_in, with_prefix
from crucible_trio.errors import InvalidLastEventIdError
from crucible_trio.records import STREAM_PREFIX, Usage, encode_json, parse_event_id

_PREFIX: Final = "msg_"

StopReason: TypeAlias = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal", "model_context_window_exceeded"
]


def format_message_id(stream_id: str) -> str:
    """The id of a stream in this API."""
    return with_prefix(_PREFIX, stream_id)


def parse_message_id(text: str) -> str:
    """The id of the stream that a message's id names.

    Raises:
        StreamNotFoundError: This server never makes such an id.
    """
    return stream_id_in(_PREFIX, text)


def parse_message_event_id(text: str) -> tuple[str, int]:
    """Split the id of an event: the id of its stream, and the event's number, counted from 0.

    Raises:
        InvalidLastEventIdError: This API cannot have sent it.
    """
    if not text.startswith(_PREFIX):
        raise InvalidLastEventIdError
    return parse_event_id(STREAM_PREFIX + text.removeprefix(_PREFIX))


# Blocks


@final
class ThinkingBlock(msgspec.Struct, frozen=True, tag_field="type", tag="thinking"):
    """A part of the trace. The signature shows later that this server wrote it."""

    thinking: str
    signature: str


@final
class TextBlock(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A part of the answer, or of a refusal."""

    text: str
    citations: None = None


@final
class ToolUseBlock(msgspec.Struct, frozen=True, tag_field="type", tag="tool_use"):
    """A tool call."""

    id: str
    name: str
    input: dict[str, object]


Block: TypeAlias = ThinkingBlock | TextBlock | ToolUseBlock


@final
class OutputTokensDetails(msgspec.Struct, frozen=True):
    """`output_tokens_details`."""

    thinking_tokens: int


@final
class MessageUsage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of prompt and answer. The reasoning is part of the answer. 0 where the engine did not count."""

    input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails | None = None


@final
class MessageObject(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    """A message. At its start it has neither content nor stop reason."""

    id: str
    role: Literal["assistant"]
    model: str
    content: list[Block]
    stop_reason: StopReason | None
    stop_sequence: str | None
    usage: MessageUsage


# Events


@final
class MessageStart(msgspec.Struct, frozen=True, tag_field="type", tag="message_start"):
    """Always event 0."""

    message: MessageObject


@final
class BlockStart(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_start"):
    """A block begins. It is empty."""

    index: int
    content_block: Block


@final
class ThinkingDelta(msgspec.Struct, frozen=True, tag_field="type", tag="thinking_delta"):
    """A piece of the trace."""

    thinking: str


@final
class SignatureDelta(msgspec.Struct, frozen=True, tag_field="type", tag="signature_delta"):
    """The signature of a part of the trace."""

    signature: str


@final
class TextDelta(msgspec.Struct, frozen=True, tag_field="type", tag="text_delta"):
    """A piece of the answer, or of a refusal."""

    text: str


@final
class InputJsonDelta(msgspec.Struct, frozen=True, tag_field="type", tag="input_json_delta"):
    """A piece of a call's arguments, as the model wrote them."""

    partial_json: str


@final
class BlockDelta(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_delta"):
    """A piece of the open block."""

    index: int
    delta: ThinkingDelta | SignatureDelta | TextDelta | InputJsonDelta


@final
class BlockStop(msgspec.Struct, frozen=True, tag_field="type", tag="content_block_stop"):
    """The block is whole."""

    index: int


@final
class MessageEnd(msgspec.Struct, frozen=True):
    """Why a message has ended."""

    stop_reason: StopReason
    stop_sequence: str | None


@final
class MessageDelta(msgspec.Struct, frozen=True, tag_field="type", tag="message_delta"):
    """The message has ended."""

    delta: MessageEnd
    usage: MessageUsage


@final
class MessageStop(msgspec.Struct, frozen=True, tag_field="type", tag="message_stop"):
    """The last event of a message that ended well."""


MessageEvent: TypeAlias = (
    MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | AnthropicError
)

PING: Final = b'event: ping\ndata: {"type":"ping"}\n\n'
"""Sent after a silence. It is not in the log and has no id."""


def encode_event(event: MessageEvent, event_id: str) -> bytes:
    """The bytes of an event: its type, its JSON on one `data` line, its id.

    The SDKs skip an event without an `event` line. The id comes last, as `crucible_trio.sse` explains.
    """
    return b"event: %b\ndata: %b\nid: %b\n\n" % (_type_of(event).encode(), encode_json(event), event_id.encode())


def usage_of(usage: Usage) -> MessageUsage:
    """The usage in Anthropic's form. Its numbers are required, so what the engine did not count is 0."""
    details = None if usage.reasoning_tokens is None else OutputTokensDetails(usage.reasoning_tokens)
    return MessageUsage(usage.input_tokens or 0, usage.output_tokens or 0, details)


def _type_of(event: MessageEvent) -> str:
    if isinstance(event, AnthropicError):
        return event.type
    tag = event.__struct_config__.tag
    assert isinstance(tag, str)
    return tag
