"""The pieces that an engine writes, on their way from its call to the log.

A piece is one call of an engine, and has a kind. A piece of text may begin or end with half a character (a lone
surrogate), because a model's tokens cut anywhere: the recorder joins the halves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias, final

import msgspec

FieldsPlace: TypeAlias = Literal["chunk", "choice", "delta"]
"""Where fields stood in a chunk of a chat completion: in the chunk, in its choice, or in the delta of that."""

# Of one `ServerFields` as JSON. A record has 16 KiB, and its wire may use three times the bytes for a character.
MAX_FIELDS_BYTES: Final = 4 * 1024


@final
class Text(msgspec.Struct, frozen=True, gc=False):
    """A piece of the answer.

    Attributes:
        text: The piece.
        logprobs: Log probabilities of its tokens, as the engine gave them: values that JSON can hold.
    """

    text: str
    logprobs: Sequence[object] | None = None


@final
class Reasoning(msgspec.Struct, frozen=True, gc=False):
    """A piece of the reasoning trace.

    Attributes:
        text: The piece.
        segment: Counts from 0 without holes: the segment of the piece before, or the next one.
    """

    text: str
    segment: int = 0


@final
class Refusal(msgspec.Struct, frozen=True, gc=False):
    """A piece of the text with which the model refuses to answer."""

    text: str


@final
class ToolCallStart(msgspec.Struct, frozen=True, gc=False):
    """The model calls a tool. Its arguments follow, then `ToolCallEnd`, before any other piece."""

    id: str
    name: str


@final
class ToolCallArguments(msgspec.Struct, frozen=True, gc=False):
    """A piece of the arguments of the open tool call: JSON text as the model wrote it, valid or not."""

    text: str


@final
class ToolCallEnd(msgspec.Struct, frozen=True, gc=False):
    """The model has ended its tool call, so the arguments are whole."""


@final
class Continued(msgspec.Struct, frozen=True, gc=False):
    """A second request to the model goes on with the answer. `characters` is the length of the answer so far."""

    characters: int


@final
class ServerFields(msgspec.Struct, frozen=True):
    """Fields of a model server's chunk that only clients of that server understand. They are not content.

    Attributes:
        at: Where they stood.
        fields: The fields, as values that JSON can hold.
    """

    at: FieldsPlace
    fields: Mapping[str, object]


TextPiece: TypeAlias = Text | Reasoning | Refusal | ToolCallArguments
Piece: TypeAlias = TextPiece | ToolCallStart | ToolCallEnd | Continued | ServerFields
