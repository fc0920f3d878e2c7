"""Messages in OpenAI's form: their roles, and content that is a text or a list of parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, final

import msgspec

from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import Fields, dotted
from crucible_trio.engine import Message
from crucible_trio.errors import InvalidRequestError

OpenAIRole: TypeAlias = Literal["system", "developer", "user", "assistant"]
OpenAIContent: TypeAlias = str | list[dict[str, object]]

_ENGINE_ROLES: Final[Mapping[OpenAIRole, Literal["system", "user", "assistant"]]] = {
    "system": "system",
    "developer": "system",  # its newer name
    "user": "user",
    "assistant": "assistant",
}


@final
class OpenAIMessage(msgspec.Struct):
    """A message of a request, in both APIs."""

    role: OpenAIRole
    content: OpenAIContent = ""  # some clients send null for an answer that never came


@final
class TextPart(msgspec.Struct):
    """A part of a message's content."""

    type: str
    text: str


_TEXT_PART: Final = Fields(
    TextPart,
    harmless={
        "annotations": "notes on an earlier answer's text",
        "logprobs": "of an earlier answer's text",
        "prompt_cache_breakpoint": "a hint for a cache",
    },
)


def read_message(role: OpenAIRole, content: OpenAIContent, at: str, *, text_types: frozenset[str]) -> Message | None:
    """Make an engine's message.

    Args:
        role: The role.
        content: The content.
        at: The place of the message in the body, as a dotted path.
        text_types: The part types that are text.

    Returns:
        The message. None for an empty message that is not the user's: some clients always send empty instructions, and
        an answer may have been stopped before its first word.

    Raises:
        InvalidRequestError: The user's content is empty, or a part is invalid.
        UnsupportedParameterError: A part is not text.
        UnknownParameterError: A part has an unknown field.
    """
    text = text_of(content, dotted(at, "content"), text_types=text_types)
    if text:
        return Message(_ENGINE_ROLES[role], text)
    if role == "user":
        raise InvalidRequestError("a message is empty", dotted(at, "content"))
    return None


def text_of(content: OpenAIContent, at: str, *, text_types: frozenset[str]) -> str:
    """The text of a content. Parts are joined by a line end, as vLLM and llama.cpp join them.

    Args:
        content: The content.
        at: Its place in the body, as a dotted path.
        text_types: The part types that are text.

    Raises:
        As `read_message`.
    """
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(content):
        place = f"{at}[{index}]"
        if "type" in part and part["type"] not in text_types:
            raise UnsupportedParameterError(dotted(place, "type"))
        texts.append(_TEXT_PART.read(part, place).text)
    return "\n".join(texts)
