"""The messages of a chat completion request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal, final

import msgspec

from crucible_trio.apis.kit.content import GivenContent, PartReader, make_file, make_image, make_part, read_content
from crucible_trio.apis.kit.errors import UnknownParameterError, UnsupportedParameterError
from crucible_trio.apis.kit.fields import Fields, dotted
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.apis.openai.messages import (
    OpenAIRole,
    read_message,
    read_old_refusal,
    read_old_text,
    read_text_part,
)
from crucible_trio.apis.openai.tools import read_wrapped_call
from crucible_trio.engine import Capabilities
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import AudioPart, Message, NonEmpty, Part


@final
class ChatMessage(msgspec.Struct):
    """The fields of a message that are understood."""

    role: OpenAIRole | Literal["tool"]
    content: GivenContent = ""
    tool_calls: list[dict[str, object]] = []
    tool_call_id: NonEmpty | None = None
    reasoning_content: object = None
    reasoning: object = None
    refusal: object = None


@final
class _ImagePartBody(msgspec.Struct):
    type: str
    image_url: str | dict[str, object]


@final
class _FilePartBody(msgspec.Struct):
    type: str
    file: dict[str, object]


@final
class _AudioPartBody(msgspec.Struct):
    type: str
    input_audio: dict[str, object]


@final
class _ImageUrl(msgspec.Struct):
    url: str
    detail: str | None = None


@final
class _File(msgspec.Struct):
    file_data: str
    filename: str | None = None


@final
class _Audio(msgspec.Struct):
    data: str
    format: str


MESSAGE: Final = Fields(
    ChatMessage,
    harmless={
        "cache_control": "a hint for a cache",
        "name": "separates speakers of one role. The models here only know roles",
    },
    refused={"function_call": ()},
)
"""The fields of each message. An assistant's message may have any others too, and they are ignored."""

_CACHE_HINT: Final = {"cache_control": "a hint for a cache"}
_IMAGE: Final = Fields(_ImagePartBody, harmless=_CACHE_HINT)
_IMAGE_URL: Final = Fields(_ImageUrl)
_FILE: Final = Fields(_FilePartBody, harmless=_CACHE_HINT)
_FILE_DATA: Final = Fields(_File, refused={"file_id": ()})
_AUDIO: Final = Fields(_AudioPartBody, harmless=_CACHE_HINT)
_AUDIO_DATA: Final = Fields(_Audio)

# Parts of an earlier answer that are not its text. The fields of the message have the reasoning.
_IGNORED_HISTORY: Final = ("thinking", "redacted_thinking", "reasoning")


def read_messages(given: Sequence[Mapping[str, object]], at: str, can: Capabilities) -> list[Message]:
    """Read the messages of a request. Empty ones that are not the user's are left out.

    Args:
        given: The messages.
        at: Their place in the body, as a dotted path.
        can: The model's capabilities.

    Raises:
        UnsupportedParameterError, UnknownParameterError: A field or part is refused, or unknown.
        InvalidRequestError: A value is invalid, or there is no message.
    """
    messages = [_read(fields, f"{at}[{index}]", can) for index, fields in enumerate(given)]
    found = [message for message in messages if message is not None]
    if not found:
        raise InvalidRequestError("there is no message", at)
    return found


def _read(fields: Mapping[str, object], at: str, can: Capabilities) -> Message | None:
    # First, because the other fields depend on it.
    role = valid(lambda: msgspec.convert({"role": fields["role"]} if "role" in fields else {}, _Role), at).role
    if role == "assistant":
        return _read_answer(MESSAGE.read(fields, at, unknown={}), at, can)
    asked = MESSAGE.read(fields, at)
    if asked.tool_calls:
        raise UnknownParameterError(dotted(at, "tool_calls"))
    if role == "tool":
        return _read_result(asked, at, can)
    if asked.tool_call_id is not None:
        raise UnknownParameterError(dotted(at, "tool_call_id"))
    return read_message(role, asked.content, at, _readers(can))


@final
class _Role(msgspec.Struct):
    role: OpenAIRole | Literal["tool"]


def _read_answer(asked: ChatMessage, at: str, can: Capabilities) -> Message | None:
    content = read_content(asked.content, dotted(at, "content"), {**_readers(can), **_HISTORY_READERS})
    if not content and isinstance(asked.refusal, str):
        content = asked.refusal
    calls = [read_wrapped_call(call, f"{at}.tool_calls[{index}]") for index, call in enumerate(asked.tool_calls)]
    if calls and not can.tools:
        raise UnsupportedParameterError(dotted(at, "tool_calls"))
    if not content and not calls:
        return None
    reasoning = None
    if can.reasoning_input:
        traces = (asked.reasoning_content, asked.reasoning)
        reasoning = next((trace for trace in traces if isinstance(trace, str) and trace), None)
    return Message("assistant", content or None, tool_calls=tuple(calls), reasoning=reasoning)


def _read_result(asked: ChatMessage, at: str, can: Capabilities) -> Message:
    if not can.tools:
        raise UnsupportedParameterError(dotted(at, "role"))
    if asked.tool_call_id is None:
        raise InvalidRequestError("the result of a tool call has a tool_call_id", dotted(at, "tool_call_id"))
    content = read_content(asked.content, dotted(at, "content"), _readers(can))
    return Message("tool", content or None, tool_call_id=asked.tool_call_id)


def _read_image(part: Mapping[str, object], at: str) -> Part:
    given = _IMAGE.read(part, at).image_url
    place = dotted(at, "image_url")
    image = _IMAGE_URL.read({"url": given} if isinstance(given, str) else given, place)
    return make_image(image.url, dotted(place, "url"), image.detail)


def _read_file(part: Mapping[str, object], at: str) -> Part:
    place = dotted(at, "file")
    file = _FILE_DATA.read(_FILE.read(part, at).file, place)
    if not file.file_data:
        raise InvalidRequestError("a file has data", dotted(place, "file_data"))
    return make_file(file.file_data, dotted(place, "file_data"), file.filename)


def _read_audio(part: Mapping[str, object], at: str) -> Part:
    place = dotted(at, "input_audio")
    audio = _AUDIO_DATA.read(_AUDIO.read(part, at).input_audio, place)
    return make_part(AudioPart, place, data=audio.data, format=audio.format)


def _ignore(part: Mapping[str, object], at: str) -> Part | None:
    return None


def _readers(can: Capabilities) -> Mapping[str, PartReader]:
    """The readers of the types of parts that a model understands."""
    readers: dict[str, PartReader] = {"text": read_text_part}
    if can.images:
        readers["image_url"] = _read_image
    if can.files:
        readers["file"] = _read_file
    if can.audio:
        readers["input_audio"] = _read_audio
    return readers


# For an assistant's messages, besides the others.
_HISTORY_READERS: Final[Mapping[str, PartReader]] = {
    "text": read_old_text,
    "output_text": read_old_text,
    "refusal": read_old_refusal,
    **dict.fromkeys(_IGNORED_HISTORY, _ignore),
}
