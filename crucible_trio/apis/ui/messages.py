"""UI messages, as a page keeps them and sends them with every request.

A page's history may hold parts of any kind: of other servers, of other versions of the AI SDK, of the application. So
parts that mean nothing to a model are left out, and none is refused for its type.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Final, Literal, NamedTuple, TypeAlias, final

import msgspec

from crucible_trio.apis.kit.content import make_file, make_image, make_part
from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import dotted
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.engine import Capabilities
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import AudioPart, Message, Part, TextPart, ToolCall, ToolName

# The base64 of audio, and its type. Models name formats by their short names.
_AUDIO: Final = re.compile(r"data:audio/(?P<format>[a-z0-9.+-]+);base64,(?P<data>.*)", re.DOTALL)
_FORMATS: Final = {"mpeg": "mp3", "x-wav": "wav", "wave": "wav", "vnd.wave": "wav"}

_Placed: TypeAlias = tuple[str, Mapping[str, object]]
"""A part, after its place in the body."""

# The types of the parts that call a tool.
_DYNAMIC: Final = "dynamic-tool"
_TOOL_PREFIX: Final = "tool-"

_TEXT_ONLY: Final = Capabilities()
_DENIED: Final = "Tool call execution denied."  # the AI SDK's words


@final
class UIMessage(msgspec.Struct):
    """A message of a page."""

    role: Literal["system", "user", "assistant"]
    parts: list[dict[str, object]]
    id: str | None = None


@final
class _TextPart(msgspec.Struct):
    text: str


@final
class _FilePart(msgspec.Struct, rename="camel"):
    media_type: str
    url: Annotated[str, msgspec.Meta(min_length=1)]
    filename: str | None = None


@final
class _Approval(msgspec.Struct):
    approved: bool | None = None
    reason: str | None = None


@final
class ToolPart(msgspec.Struct, rename="camel"):
    """A tool call and its result, if the page has one.

    Attributes:
        type: `dynamic-tool`, or `tool-` and the name of the tool.
        tool_name: The name of the tool in a part of type `dynamic-tool`.
    """

    type: str
    tool_call_id: Annotated[str, msgspec.Meta(min_length=1)]
    state: str
    tool_name: str = ""
    input: object = None
    raw_input: object = None
    output: object = None
    error_text: str | None = None
    approval: _Approval | None = None

    @property
    def is_dynamic(self) -> bool:
        """Whether the page does not know the tool."""
        return self.type == _DYNAMIC

    @property
    def name(self) -> str:
        """The name of the tool. Not checked: it may be empty."""
        return self.tool_name if self.is_dynamic else self.type.removeprefix(_TOOL_PREFIX)

    @property
    def result(self) -> str | None:
        """The result as a text for the model. None if there is none."""
        match self.state:
            case "output-available":
                return self.output if isinstance(self.output, str) else encode_value(self.output)
            case "output-error":
                return self.error_text or "The tool failed."
            case "output-denied":
                return self._denied
            case "approval-responded" if self.approval is not None and self.approval.approved is False:
                return self._denied
        return None

    @property
    def arguments(self) -> str:
        """The arguments as JSON text. Those that were no JSON come back as they were."""
        if self.input is None and isinstance(self.raw_input, str):
            return self.raw_input
        given = self.raw_input if self.input is None else self.input
        return encode_value({} if given is None else given)

    @property
    def _denied(self) -> str:
        return (self.approval and self.approval.reason) or _DENIED


class ReadMessages(NamedTuple):
    """The messages of a request.

    Attributes:
        messages: For the engine.
        continued: The last message, if it is the assistant's: the answer belongs to it.
    """

    messages: list[Message]
    continued: UIMessage | None


def read_messages(given: Sequence[object], at: str, can: Capabilities) -> ReadMessages:
    """Read the messages of a page. Those without content for the model are left out.

    Args:
        given: The messages.
        at: Their place in the body, as a dotted path.
        can: The model's capabilities.

    Raises:
        UnsupportedParameterError: The model does not take a kind of content.
        InvalidRequestError: A value is invalid, or there is no message.
    """
    read: list[Message] = []
    last: UIMessage | None = None
    for index, fields in enumerate(given):
        last = valid(partial(msgspec.convert, fields, UIMessage), f"{at}[{index}]")
        place = f"{at}[{index}].parts"
        if last.role == "assistant":
            for step in _steps(last.parts, place):
                read += _read_step(step, can)
        elif content := _read_content(last.parts, place, can if last.role == "user" else _TEXT_ONLY):
            read.append(Message(last.role, content))
    if not read:
        raise InvalidRequestError("there is no message", at)
    return ReadMessages(read, last if last is not None and last.role == "assistant" else None)


def read_tool_part(part: Mapping[str, object], at: str) -> ToolPart | None:
    """Read a part that calls a tool. None for a part of another kind.

    Raises:
        InvalidRequestError: A value is invalid.
    """
    kind = part.get("type")
    if not isinstance(kind, str) or not (kind == _DYNAMIC or kind.startswith(_TOOL_PREFIX)):
        return None
    read: ToolPart = valid(partial(msgspec.convert, part, ToolPart), at)
    return read


def _steps(parts: Sequence[Mapping[str, object]], at: str) -> Iterator[list[_Placed]]:
    """The parts of each answer of the model. The results of its calls came before the next one."""
    step: list[_Placed] = []
    for index, part in enumerate(parts):
        if part.get("type") == "step-start":
            yield step
            step = []
        step.append((f"{at}[{index}]", part))
    yield step


def _read_step(step: Sequence[_Placed], can: Capabilities) -> Iterator[Message]:
    texts: list[str] = []
    trace: list[str] = []
    calls: list[ToolCall] = []
    results: list[Message] = []
    for place, part in step:
        call = read_tool_part(part, place)
        if call is not None:
            if call.result is None:
                continue  # servers refuse a call without a result
            if not can.tools:
                raise UnsupportedParameterError(place)
            calls.append(_call_of(call, place))
            results.append(Message("tool", call.result or None, tool_call_id=call.tool_call_id))
        elif part.get("type") in ("text", "reasoning"):
            text = valid(partial(msgspec.convert, part, _TextPart), place).text
            (texts if part["type"] == "text" else trace).append(text)
    content = "".join(texts)
    if content or calls:
        reasoning = "".join(trace) if can.reasoning_input else ""
        yield Message("assistant", content or None, tool_calls=tuple(calls), reasoning=reasoning or None)
    yield from results


def _call_of(part: ToolPart, at: str) -> ToolCall:
    place = dotted(at, "toolName" if part.is_dynamic else "type")
    name: str = valid(partial(msgspec.convert, part.name, ToolName), place)
    return ToolCall(part.tool_call_id, name, part.arguments)


def _read_content(parts: Sequence[Mapping[str, object]], at: str, can: Capabilities) -> str | tuple[Part, ...]:
    """Read the text and the files of a message. Texts are joined by a line end, unless files are between them."""
    read: list[Part] = []
    for index, part in enumerate(parts):
        place = f"{at}[{index}]"
        match part.get("type"):
            case "text":
                text = valid(partial(msgspec.convert, part, _TextPart), place).text
                if text:
                    read.append(TextPart(text))
            case "file":
                read.append(_read_file(valid(partial(msgspec.convert, part, _FilePart), place), place, can))
    texts = [part.text for part in read if isinstance(part, TextPart)]
    return "\n".join(texts) if len(texts) == len(read) else tuple(read)


def _read_file(file: _FilePart, at: str, can: Capabilities) -> Part:
    if file.media_type.startswith("image/") and can.images:
        return make_image(file.url, dotted(at, "url"))
    if (audio := _AUDIO.fullmatch(file.url)) is not None and can.audio:
        sound = _FORMATS.get(audio["format"], audio["format"])
        return make_part(AudioPart, at, data=audio["data"], format=sound)
    if not can.files or file.media_type.startswith("image/"):
        raise UnsupportedParameterError(at)
    return make_file(file.url, dotted(at, "url"), file.filename)


def encode_value(value: object) -> str:
    """A value of a request as JSON text again."""
    return msgspec.json.encode(value).decode()
