"""The messages of a request, whose content is blocks, as messages for the engine.

One message of the user can hold results of tools and text. For the engine these are several messages: each result, then
the rest. A message of the model holds its trace, text and calls in any order, and is one message for the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, Literal, TypeVar, final

import msgspec

from crucible_trio.apis.anthropic.fold import UNPARSED
from crucible_trio.apis.kit.content import GivenContent, PartReader, make_file, make_image, read_content
from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import dotted
from crucible_trio.apis.kit.ignored import Ignored
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.apis.kit.sealed import Seal
from crucible_trio.engine import Capabilities
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import Message, NonEmpty, Part, TextPart, ToolCall

_Shape = TypeVar("_Shape", bound=msgspec.Struct)

# Says to a model that a tool has failed. A chat completion has no other place for it.
_FAILED: Final = "The tool call failed."

# Says to a model which tools it may call from now on.
_ADDED: Final = "The tool {} can be called now."
_REMOVED: Final = "The tool {} cannot be called any more."

# Fields of every block that mean nothing here.
_BLOCK_FIELDS: Final = frozenset({"type", "cache_control"})


@final
class _Message(msgspec.Struct):
    role: Literal["user", "assistant", "system"]
    content: GivenContent


@final
class _TextBlock(msgspec.Struct):
    text: str
    citations: object = None  # of an earlier answer


@final
class _ImageBlock(msgspec.Struct):
    source: dict[str, object]


@final
class _Citations(msgspec.Struct):
    enabled: bool = False


@final
class _DocumentBlock(msgspec.Struct):
    source: dict[str, object]
    title: str | None = None
    context: str | None = None
    citations: _Citations | None = None


@final
class _SearchResultBlock(msgspec.Struct):
    content: list[dict[str, object]]
    source: str = ""
    title: str = ""
    citations: _Citations | None = None


_Block = TypeVar("_Block", _ImageBlock, _DocumentBlock)


@final
class _Source(msgspec.Struct):
    type: str
    data: str | None = None
    media_type: str | None = None
    url: str | None = None
    content: GivenContent | None = None
    file_id: object = None


@final
class _ToolUse(msgspec.Struct):
    id: NonEmpty
    name: NonEmpty
    input: dict[str, object] = {}


@final
class _ToolResult(msgspec.Struct):
    tool_use_id: NonEmpty
    content: GivenContent = ""
    is_error: bool = False


@final
class _FoundTool(msgspec.Struct):
    tool_name: NonEmpty


@final
class _ToolChange(msgspec.Struct):
    tool: dict[str, object]


@final
class MessageReader:
    """Reads messages.

    Args:
        can: The model's capabilities.
        ignored: Takes the names of fields and blocks that are ignored.
        seal: Verifies the traces of earlier turns.

    Attributes:
        unverified: How many traces were left out because this server has not signed them.
    """

    def __init__(self, can: Capabilities, ignored: Ignored, seal: Seal) -> None:
        self.unverified = 0
        self._can = can
        self._ignored = ignored
        self._seal = seal
        self._messages: list[Message] = []
        self._texts: dict[str, PartReader] = {"text": self._read_text}
        self._parts = self._texts | {"document": self._read_document, "search_result": self._read_search_result}
        if can.images:
            self._parts["image"] = self._read_image
        self._result_parts = self._parts | {"tool_reference": self._read_reference}
        self._system_parts = self._texts | {
            "tool_addition": partial(self._read_tool_change, words=_ADDED),
            "tool_removal": partial(self._read_tool_change, words=_REMOVED),
        }
        self._users_parts = self._parts | {"tool_result": self._read_result}

    def read(self, system: GivenContent, given: Sequence[Mapping[str, object]]) -> list[Message]:
        """Read the conversation. Empty messages that are not the user's are left out.

        Args:
            system: The system prompt.
            given: The messages.

        Raises:
            UnsupportedParameterError: A block has a type that this server or the model does not support.
            InvalidRequestError: A value is invalid, or there is no message.
        """
        self._read_system(system, "system")
        for index, fields in enumerate(given):
            at = f"messages[{index}]"
            known = self._ignored.known(fields, _Message.__struct_fields__, "messages[]")
            message = valid(partial(msgspec.convert, known, _Message), at)
            place = dotted(at, "content")
            match message.role:
                case "system":
                    self._read_system(message.content, place)
                case "user":
                    self._read_user(message.content, place)
                case "assistant":
                    self._read_answer(message.content, place)
        if all(message.role == "system" for message in self._messages):
            raise InvalidRequestError("there is no message", "messages")
        return self._messages

    def _read_system(self, content: GivenContent, at: str) -> None:
        text = read_content(content, at, self._system_parts)
        if text:
            self._messages.append(Message("system", text))

    def _read_user(self, content: GivenContent, at: str) -> None:
        before = len(self._messages)
        read = read_content(content, at, self._users_parts)  # adds a message for each result
        if read:
            self._messages.append(Message("user", read))
        elif len(self._messages) == before:
            raise InvalidRequestError("a message is empty", at)

    def _read_answer(self, content: GivenContent, at: str) -> None:
        """Add the model's turn as one message. A trace without an answer or a call is no turn."""
        blocks: list[dict[str, object]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts: list[str] = []
        traces: list[str] = []
        calls: list[ToolCall] = []
        for index, block in enumerate(blocks):
            place = f"{at}[{index}]"
            match block.get("type"):
                case "text":
                    texts.append(self._read_block(block, place, _TextBlock).text)
                case "thinking" | "redacted_thinking":
                    traces.append(self._trace_of(block))
                case "tool_use":
                    calls.append(self._read_call(block, place))
                case str():  # what a server did in an earlier turn. The answer has the results
                    self._ignore_block(block, place)
                case _:
                    raise InvalidRequestError("a block has a type", dotted(place, "type"))
        text, trace = "".join(texts), "".join(traces)
        if text or calls:
            self._messages.append(Message("assistant", text or None, tool_calls=tuple(calls), reasoning=trace or None))

    def _trace_of(self, block: Mapping[str, object]) -> str:
        """The trace in a block. Empty if the model cannot read it, or if this server has not signed it."""
        if not self._can.reasoning_input:
            return ""
        trace, signature = block.get("thinking"), block.get("signature")
        if isinstance(signature, str):
            if isinstance(trace, str) and trace and self._seal.matches(trace, signature):
                return trace
            if not trace and (sealed := self._seal.verify(signature)) is not None:
                return sealed
        self.unverified += 1
        return ""

    def _read_call(self, block: Mapping[str, object], at: str) -> ToolCall:
        if not self._can.tools:
            raise UnsupportedParameterError(dotted(at, "type"))
        call = self._read_block(block, at, _ToolUse)
        unparsed = call.input.get(UNPARSED)
        arguments = unparsed if isinstance(unparsed, str) else msgspec.json.encode(call.input).decode()
        made = {"id": call.id, "name": call.name, "arguments": arguments}
        return valid(lambda: msgspec.convert(made, ToolCall), at)

    def _read_result(self, block: Mapping[str, object], at: str) -> None:
        if not self._can.tools:
            raise UnsupportedParameterError(dotted(at, "type"))
        result = self._read_block(block, at, _ToolResult)
        content: str | tuple[Part, ...] = read_content(result.content, dotted(at, "content"), self._result_parts)
        if result.is_error:
            content = f"{_FAILED}\n{content}".strip() if isinstance(content, str) else (TextPart(_FAILED), *content)
        self._messages.append(Message("tool", content or None, tool_call_id=result.tool_use_id))

    def _read_text(self, block: Mapping[str, object], at: str) -> Part | None:
        return _text_part(self._read_block(block, at, _TextBlock).text)

    def _read_image(self, block: Mapping[str, object], at: str) -> Part:
        source, place = self._source_of(block, at, _ImageBlock)
        match source:
            case _Source(type="base64", data=str(data), media_type=str(media_type)):
                return make_image(f"data:{media_type};base64,{data}", dotted(place, "media_type"))
            case _Source(type="url", url=str(url)):
                return make_image(url, dotted(place, "url"))
        raise _bad_source(source, place)

    def _read_document(self, block: Mapping[str, object], at: str) -> Part | None:
        document = self._read_block(block, at, _DocumentBlock)
        _check_citations(document.citations, at)
        source, place = self._source_of(block, at, _DocumentBlock)
        match source:
            case _Source(type="text", data=str(text)):
                return _text_part("\n".join(filter(None, (document.title, document.context, text))))
            case _Source(type="content", content=str() | list() as content):
                read = read_content(content, dotted(place, "content"), self._texts)
                assert isinstance(read, str)  # these readers read texts only
                return _text_part("\n".join(filter(None, (document.title, document.context, read))))
            case _Source(type="base64", data=str(data), media_type=str(media_type)) if self._can.files:
                return make_file(f"data:{media_type};base64,{data}", dotted(place, "media_type"), document.title)
            case _Source(type="url", url=str(url)) if self._can.files:
                return make_file(url, dotted(place, "url"), document.title)
        raise _bad_source(source, place)

    def _read_search_result(self, block: Mapping[str, object], at: str) -> Part | None:
        result = self._read_block(block, at, _SearchResultBlock)
        _check_citations(result.citations, at)
        text = read_content(result.content, dotted(at, "content"), self._texts)
        assert isinstance(text, str)  # these readers read texts only
        return _text_part("\n".join(filter(None, (result.title, result.source, text))))

    def _ignore_block(self, block: Mapping[str, object], at: str) -> None:
        self._ignored.add(f"messages[].content[].{block['type']}")

    def _read_reference(self, block: Mapping[str, object], at: str) -> Part:
        """Read what a search for tools has found. The request has the tool itself among its `tools`."""
        return TextPart(_ADDED.format(self._read_block(block, at, _FoundTool).tool_name))

    def _read_tool_change(self, block: Mapping[str, object], at: str, *, words: str) -> Part:
        """Read a change of the tools in the middle of a conversation. The tool is among the request's `tools`."""
        tool = self._read_block(block, at, _ToolChange).tool
        place = dotted(at, "tool")
        if tool.get("type") != "tool_reference":
            raise UnsupportedParameterError(dotted(place, "type"))
        return TextPart(words.format(valid(lambda: msgspec.convert(tool.get("name"), NonEmpty), dotted(place, "name"))))

    def _source_of(self, block: Mapping[str, object], at: str, shape: type[_Block]) -> tuple[_Source, str]:
        source = self._read_block(block, at, shape).source
        place = dotted(at, "source")
        known = self._ignored.known(source, _Source.__struct_fields__, "messages[].content[].source")
        return valid(lambda: msgspec.convert(known, _Source), place), place

    def _read_block(self, block: Mapping[str, object], at: str, shape: type[_Shape]) -> _Shape:
        known = self._ignored.known(block, _BLOCK_FIELDS | set(shape.__struct_fields__), "messages[].content[]")
        return valid(lambda: msgspec.convert(known, shape), at)


def _text_part(text: str) -> Part | None:
    return TextPart(text) if text else None


def _check_citations(citations: _Citations | None, at: str) -> None:
    if citations is not None and citations.enabled:
        raise UnsupportedParameterError(dotted(at, "citations.enabled"))


def _bad_source(source: _Source, at: str) -> Exception:
    """The error of a source that is incomplete, or of a kind that this server or the model does not support."""
    if source.type == "text" or (source.type in ("base64", "url") and source.data is None and source.url is None):
        return InvalidRequestError("the source has no data", at)
    return UnsupportedParameterError(dotted(at, "type"))
