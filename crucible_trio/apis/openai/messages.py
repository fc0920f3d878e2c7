"""Messages in OpenAI's form: their roles, and content that is a text or a list of parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import msgspec

from crucible_trio.engine import Message
from crucible_trio.errors import InvalidRequestError
from crucible_trio.web.openai.errors import UnsupportedParameterError
from crucible_trio.web.openai.fields import Fields, dotted

Role: TypeAlias = Literal["system", "developer", "user", "assistant"]
Content: TypeAlias = str | list[dict[str, object]]

_OUR_ROLE: Final[Mapping[Role, Literal["system", "user", "assistant"]]] = {
    "system": "system",
    "developer": "system",  # its newer name
    "user": "user",
    "assistant": "assistant",
}


class AskedMessage(msgspec.Struct):
    """A message of a request, on either wire."""

    role: Role
    content: Content = ""  # of an answer that never came, some clients send null


class _TextPart(msgspec.Struct):
    type: str
    text: str


_TEXT_PART: Final = Fields(
    _TextPart,
    harmless={
        "annotations": "notes on an earlier answer's text",
        "logprobs": "of an earlier answer's text",
        "prompt_cache_breakpoint": "a hint for a cache",
    },
)


def read_message(role: Role, content: Content, at: str, *, text_types: frozenset[str]) -> Message | None:
    """Make one of our messages.

    Args:
        role: Who says it.
        content: What.
        at: Where the message stands in the body, as a dotted path.
        text_types: The part types that are text.

    Returns:
        The message; None for one without a word that is not the user's: instructions that some clients always send, and
        an answer that was stopped before it began.

    Raises:
        InvalidRequestError: The user's content is empty, or a part does not fit.
        UnsupportedParameterError: A part is no text.
        UnknownParameterError: A part holds something unknown.
    """
    text = text_of(content, dotted(at, "content"), text_types=text_types)
    if text:
        return Message(_OUR_ROLE[role], text)
    if role == "user":
        raise InvalidRequestError("a message is empty", dotted(at, "content"))
    return None


def text_of(content: Content, at: str, *, text_types: frozenset[str]) -> str:
    """The text of a content; between parts there is a line end, as vLLM and llama.cpp put it.

    Args:
        content: The content.
        at: Where it stands in the body, as a dotted path.
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
