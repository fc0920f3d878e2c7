"""Messages in OpenAI's form: their roles, and content that is a text or a list of parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Literal, TypeAlias, final

import msgspec

from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import Fields, dotted
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import Message, Part, TextPart

OpenAIRole: TypeAlias = Literal["system", "developer", "user", "assistant"]
OpenAIContent: TypeAlias = str | list[dict[str, object]]
PartReader: TypeAlias = Callable[[Mapping[str, object], str], Part | None]
"""Reads a part of one type at a place. None: the part is empty."""

ENGINE_ROLES: Final[Mapping[OpenAIRole, Literal["system", "user", "assistant"]]] = {
    "system": "system",
    "developer": "system",  # its newer name
    "user": "user",
    "assistant": "assistant",
}


@final
class OpenAIMessage(msgspec.Struct):
    """A message of a request."""

    role: OpenAIRole
    content: OpenAIContent = ""  # some clients send null for an answer that never came


@final
class OpenAITextPart(msgspec.Struct):
    """A part of a message's content."""

    type: str
    text: str


_TEXT_PART: Final = Fields(
    OpenAITextPart,
    harmless={
        "annotations": "notes on an earlier answer's text",
        "cache_control": "a hint for a cache",
        "logprobs": "of an earlier answer's text",
        "prompt_cache_breakpoint": "a hint for a cache",
    },
)


def read_text_part(part: Mapping[str, object], at: str) -> Part | None:
    """Read a part with a `text` (`PartReader`).

    Raises:
        UnknownParameterError: The part has an unknown field.
        InvalidRequestError: Its text is missing or no text.
    """
    text = _TEXT_PART.read(part, at).text
    return TextPart(text) if text else None


def read_message(
    role: OpenAIRole, content: OpenAIContent, at: str, readers: Mapping[str, PartReader]
) -> Message | None:
    """Make an engine's message.

    Args:
        role: The role.
        content: The content.
        at: The place of the message in the body, as a dotted path.
        readers: The readers of its parts, by type. Other types are refused.

    Returns:
        The message. None for an empty message that is not the user's: some clients always send empty instructions, and
        an answer may have been stopped before its first word.

    Raises:
        As `read_content`.
        InvalidRequestError: The user's content is empty.
    """
    read = read_content(content, dotted(at, "content"), readers)
    if read:
        return Message(ENGINE_ROLES[role], read)
    if role == "user":
        raise InvalidRequestError("a message is empty", dotted(at, "content"))
    return None


def read_content(content: OpenAIContent, at: str, readers: Mapping[str, PartReader]) -> str | tuple[Part, ...]:
    """Read a content. Texts are joined by a line end, as vLLM and llama.cpp join them, unless other parts are between.

    Args:
        content: The content.
        at: Its place in the body, as a dotted path.
        readers: The readers of its parts, by type. Other types are refused.

    Returns:
        A text, or parts. Empty if there is nothing in it.

    Raises:
        UnsupportedParameterError: A part has another type.
        UnknownParameterError: A part has an unknown field.
        InvalidRequestError: A part is invalid.
    """
    if isinstance(content, str):
        return content
    parts: list[Part] = []
    for index, given in enumerate(content):
        place = f"{at}[{index}]"
        kind = given.get("type")
        if kind is None:
            raise InvalidRequestError("a part has a type", dotted(place, "type"))
        reader = readers.get(kind) if isinstance(kind, str) else None
        if reader is None:
            raise UnsupportedParameterError(dotted(place, "type"))
        part = reader(given, place)
        if part is not None:
            parts.append(part)
    texts = [part.text for part in parts if isinstance(part, TextPart)]
    return "\n".join(texts) if len(texts) == len(parts) else tuple(parts)
