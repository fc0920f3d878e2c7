"""Messages in OpenAI's form: their roles, and content that is a text or a list of parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, final

import msgspec

from crucible_trio.apis.kit.content import GivenContent, PartReader, read_content
from crucible_trio.apis.kit.fields import Fields, dotted
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import Message, Part, TextPart

OpenAIRole: TypeAlias = Literal["system", "developer", "user", "assistant"]

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
    content: GivenContent = ""  # some clients send null for an answer that never came


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


def read_old_text(part: Mapping[str, object], at: str) -> Part | None:
    """Read a text of an earlier answer (`PartReader`). Its other fields are ignored. Raises as `read_text_part`."""
    return read_text_part({name: part[name] for name in ("type", "text") if name in part}, at)


def read_old_refusal(part: Mapping[str, object], at: str) -> Part | None:
    """Read a refusal in an earlier answer, as `read_old_text` reads a text."""
    return read_text_part({"type": "refusal", "text": part.get("refusal") or ""}, at)


def read_message(role: OpenAIRole, content: GivenContent, at: str, readers: Mapping[str, PartReader]) -> Message | None:
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
