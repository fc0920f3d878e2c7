"""The blocks of a message that become parts for the engine: text, images, documents, search results.

A change of the tools in the middle of a conversation becomes text too. An engine has one list of tools for a request.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Final, TypeVar, final

import msgspec

from crucible_trio.apis.kit.content import GivenContent, PartReader, make_file, make_image, read_content
from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.fields import dotted
from crucible_trio.apis.kit.ignored import Ignored
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.engine import Capabilities
from crucible_trio.errors import InvalidRequestError
from crucible_trio.request import NonEmpty, Part, TextPart

_Shape = TypeVar("_Shape", bound=msgspec.Struct)

# Says to a model which tools it may call from now on.
_ADDED: Final = "The tool {} can be called now."
_REMOVED: Final = "The tool {} cannot be called any more."

# Fields of every block that mean nothing here.
_BLOCK_FIELDS: Final = frozenset({"type", "cache_control"})


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
class _FoundTool(msgspec.Struct):
    tool_name: NonEmpty


@final
class _ToolChange(msgspec.Struct):
    tool: dict[str, object]


@final
class BlockReader:
    """Reads blocks.

    Args:
        can: The model's capabilities.
        tools: The names of the tools that the model is offered.
        ignored: Takes the names of fields and blocks that are ignored.

    Attributes:
        system: The readers of the system prompt's blocks, by type.
        users: Those of the user's blocks, except results of tools.
        results: Those of the blocks in a result.
    """

    def __init__(self, can: Capabilities, tools: Collection[str], ignored: Ignored) -> None:
        self._can = can
        self._tools = tools
        self._ignored = ignored
        self._texts: Mapping[str, PartReader] = {"text": self._read_text}
        users = {**self._texts, "document": self._read_document, "search_result": self._read_search_result}
        if can.images:
            users["image"] = self._read_image
        self.users: Mapping[str, PartReader] = users
        self.results: Mapping[str, PartReader] = {**users, "tool_reference": self._read_reference}
        self.system: Mapping[str, PartReader] = {
            **self._texts,
            "tool_addition": partial(self._read_tool_change, words=_ADDED),
            "tool_removal": partial(self._read_tool_change, words=_REMOVED),
        }

    def text(self, block: Mapping[str, object], at: str) -> str:
        """The text of a block of type `text`. The errors are those of `read`."""
        return self.read(block, at, _TextBlock).text

    def read(self, block: Mapping[str, object], at: str, shape: type[_Shape]) -> _Shape:
        """Read a block as a shape. Its unknown fields are ignored.

        Raises:
            InvalidRequestError: A value is invalid.
        """
        known = self._ignored.known(block, _BLOCK_FIELDS | set(shape.__struct_fields__), "messages[].content[]")
        return valid(lambda: msgspec.convert(known, shape), at)

    def _read_text(self, block: Mapping[str, object], at: str) -> Part | None:
        return _text_part(self.text(block, at))

    def _read_image(self, block: Mapping[str, object], at: str) -> Part:
        source, place = self._source_of(block, at, _ImageBlock)
        match source:
            case _Source(type="base64", data=str(data), media_type=str(media_type)):
                return make_image(f"data:{media_type};base64,{data}", dotted(place, "media_type"))
            case _Source(type="url", url=str(url)):
                return make_image(url, dotted(place, "url"))
        raise _bad_source(source, place)

    def _read_document(self, block: Mapping[str, object], at: str) -> Part | None:
        document = self.read(block, at, _DocumentBlock)
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
        result = self.read(block, at, _SearchResultBlock)
        _check_citations(result.citations, at)
        text = read_content(result.content, dotted(at, "content"), self._texts)
        assert isinstance(text, str)  # these readers read texts only
        return _text_part("\n".join(filter(None, (result.title, result.source, text))))

    def _read_reference(self, block: Mapping[str, object], at: str) -> Part | None:
        """Read what a search for tools has found."""
        return self._tool_part(_ADDED, self.read(block, at, _FoundTool).tool_name, block)

    def _read_tool_change(self, block: Mapping[str, object], at: str, *, words: str) -> Part | None:
        """Read a change of the tools in the middle of a conversation."""
        tool = self.read(block, at, _ToolChange).tool
        place = dotted(at, "tool")
        if tool.get("type") != "tool_reference":
            raise UnsupportedParameterError(dotted(place, "type"))
        name: str = valid(lambda: msgspec.convert(tool.get("name"), NonEmpty), dotted(place, "name"))
        return self._tool_part(words, name, block)

    def _tool_part(self, words: str, name: str, block: Mapping[str, object]) -> Part | None:
        """Words about a tool. None if the model is not offered it: then it must not believe that it can call it."""
        if name not in self._tools:
            self._ignored.add(f"messages[].content[].{block['type']}")
            return None
        return TextPart(words.format(name))

    def _source_of(self, block: Mapping[str, object], at: str, shape: type[_Block]) -> tuple[_Source, str]:
        source = self.read(block, at, shape).source
        place = dotted(at, "source")
        known = self._ignored.known(source, _Source.__struct_fields__, "messages[].content[].source")
        return valid(lambda: msgspec.convert(known, _Source), place), place


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
