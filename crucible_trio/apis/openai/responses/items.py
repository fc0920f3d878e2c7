"""Output items that are being written, and the events that write them.

A text is kept as its pieces and joined when its part is finished. So the cost of following a stream grows with the
number of pieces and not with its square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias, final

from msgspec import UNSET, UnsetType

from crucible_trio.apis.kit.sealed import Seal
from crucible_trio.apis.openai.responses.events import (
    ContentPartAdded,
    ContentPartDone,
    CustomToolCallInputDelta,
    CustomToolCallInputDone,
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    RefusalTextDelta,
    RefusalTextDone,
    ResponsesEvent,
    SummaryPartAdded,
    SummaryPartDone,
    SummaryTextDelta,
    SummaryTextDone,
)
from crucible_trio.apis.openai.responses.objects import (
    CustomCallItem,
    FunctionCallItem,
    ItemStatus,
    MessageItem,
    OutputText,
    ReasoningItem,
    RefusalPart,
    SummaryText,
)
from crucible_trio.apis.openai.responses.tool_origins import ToolOrigin, custom_input


@final
class OpenReasoning:
    """A trace that is being written. Each segment is a part of its summary. Parts are numbered from 0 in each item.

    Args:
        item_id: The id of the item.
        output_index: Its place in the output.
        seal: Signs the whole trace. None: the item has no `encrypted_content`.
    """

    def __init__(self, item_id: str, output_index: int, seal: Seal | None = None) -> None:
        self._seal = seal
        self._id = item_id
        self._index = output_index
        self._finished: list[SummaryText] = []
        self._segment: int | None = None
        self._pieces: list[str] = []

    def begin(self) -> Iterator[ResponsesEvent]:
        """The events that open it."""
        yield OutputItemAdded(output_index=self._index, item=self.item("in_progress"))

    def add(self, segment: int, delta: str) -> Iterator[ResponsesEvent]:
        """The events for the next piece."""
        if segment != self._segment:
            yield from self._finish_segment()
            self._segment = segment
            yield SummaryPartAdded(
                item_id=self._id,
                output_index=self._index,
                summary_index=len(self._finished),
                part=SummaryText(""),
            )
        self._pieces.append(delta)
        yield SummaryTextDelta(
            item_id=self._id, output_index=self._index, summary_index=len(self._finished), delta=delta
        )

    def finish(self, status: ItemStatus) -> Iterator[ResponsesEvent]:
        """The events that close it."""
        yield from self._finish_segment()
        yield OutputItemDone(output_index=self._index, item=self.item(status))

    def item(self, status: ItemStatus) -> ReasoningItem:
        """The item with its text so far."""
        unfinished = [] if self._segment is None else [SummaryText("".join(self._pieces))]
        parts = self._finished + unfinished
        sealed: str | UnsetType = UNSET
        if self._seal is not None and status != "in_progress":
            sealed = self._seal.sign("".join(part.text for part in parts))
        return ReasoningItem(self._id, status, parts, sealed)

    def _finish_segment(self) -> Iterator[ResponsesEvent]:
        if self._segment is None:
            return
        part = SummaryText("".join(self._pieces))
        index = len(self._finished)
        self._finished.append(part)
        self._segment = None
        self._pieces.clear()
        yield SummaryTextDone(item_id=self._id, output_index=self._index, summary_index=index, text=part.text)
        yield SummaryPartDone(item_id=self._id, output_index=self._index, summary_index=index, part=part)


@final
class OpenMessage:
    """An answer that is being written. It has one part."""

    def __init__(self, item_id: str, output_index: int) -> None:
        self._id = item_id
        self._index = output_index
        self._pieces: list[str] = []
        self._logprobs: list[object] = []

    def begin(self) -> Iterator[ResponsesEvent]:
        """The events that open it."""
        yield OutputItemAdded(output_index=self._index, item=MessageItem(self._id, "in_progress", []))
        yield ContentPartAdded(item_id=self._id, output_index=self._index, part=OutputText(""))

    def add(self, delta: str, logprobs: Sequence[object] = ()) -> Iterator[ResponsesEvent]:
        """The event for the next piece."""
        self._pieces.append(delta)
        self._logprobs += logprobs
        yield OutputTextDelta(item_id=self._id, output_index=self._index, delta=delta, logprobs=logprobs)

    def finish(self, status: ItemStatus) -> Iterator[ResponsesEvent]:
        """The events that close it."""
        part = self._part()
        yield OutputTextDone(item_id=self._id, output_index=self._index, text=part.text, logprobs=part.logprobs)
        yield ContentPartDone(item_id=self._id, output_index=self._index, part=part)
        yield OutputItemDone(output_index=self._index, item=self.item(status))

    def item(self, status: ItemStatus) -> MessageItem:
        """The item with its text so far."""
        return MessageItem(self._id, status, [self._part()])

    def _part(self) -> OutputText:
        return OutputText("".join(self._pieces), logprobs=tuple(self._logprobs))


@final
class OpenRefusal:
    """A refusal that is being written: a message with one refusal part."""

    def __init__(self, item_id: str, output_index: int) -> None:
        self._id = item_id
        self._index = output_index
        self._pieces: list[str] = []

    def begin(self) -> Iterator[ResponsesEvent]:
        """The events that open it."""
        yield OutputItemAdded(output_index=self._index, item=MessageItem(self._id, "in_progress", []))
        yield ContentPartAdded(item_id=self._id, output_index=self._index, part=RefusalPart(""))

    def add(self, delta: str) -> Iterator[ResponsesEvent]:
        """The event for the next piece."""
        self._pieces.append(delta)
        yield RefusalTextDelta(item_id=self._id, output_index=self._index, delta=delta)

    def finish(self, status: ItemStatus) -> Iterator[ResponsesEvent]:
        """The events that close it."""
        part = RefusalPart("".join(self._pieces))
        yield RefusalTextDone(item_id=self._id, output_index=self._index, refusal=part.refusal)
        yield ContentPartDone(item_id=self._id, output_index=self._index, part=part)
        yield OutputItemDone(output_index=self._index, item=self.item(status))

    def item(self, status: ItemStatus) -> MessageItem:
        """The item with its text so far."""
        return MessageItem(self._id, status, [RefusalPart("".join(self._pieces))])


@final
class OpenFunctionCall:
    """A tool call that is being written.

    A call that is not whole has no closing events, because clients execute a call when they see them.

    Attributes:
        is_whole: Whether the model has ended the call.
    """

    def __init__(self, item_id: str, output_index: int, call_id: str, tool: ToolOrigin) -> None:
        self.is_whole = False
        self._id = item_id
        self._index = output_index
        self._call_id = call_id
        self._tool = tool
        self._pieces: list[str] = []

    def begin(self) -> Iterator[ResponsesEvent]:
        """The event that opens it."""
        yield OutputItemAdded(output_index=self._index, item=self.item("in_progress"))

    def add(self, delta: str) -> Iterator[ResponsesEvent]:
        """The event for the next piece of the arguments."""
        self._pieces.append(delta)
        yield FunctionCallArgumentsDelta(item_id=self._id, output_index=self._index, delta=delta)

    def finish(self, status: ItemStatus) -> Iterator[ResponsesEvent]:
        """The events that close it. None for a call that is not whole."""
        if self.is_whole:
            item = self.item(status)
            yield FunctionCallArgumentsDone(item_id=self._id, output_index=self._index, arguments=item.arguments)
            yield OutputItemDone(output_index=self._index, item=item)

    def item(self, status: ItemStatus) -> FunctionCallItem:
        """The item with its arguments so far."""
        namespace = UNSET if self._tool.namespace is None else self._tool.namespace
        return FunctionCallItem(
            self._id, status, self._call_id, self._tool.name, "".join(self._pieces), namespace=namespace
        )


@final
class OpenCustomCall:
    """A call of a custom tool that is being written.

    The model writes arguments in JSON. The input is known when they are whole, so it has one delta.

    Attributes:
        is_whole: Whether the model has ended the call.
    """

    def __init__(self, item_id: str, output_index: int, call_id: str, tool: ToolOrigin) -> None:
        self.is_whole = False
        self._id = item_id
        self._index = output_index
        self._call_id = call_id
        self._tool = tool
        self._pieces: list[str] = []

    def begin(self) -> Iterator[ResponsesEvent]:
        """The event that opens it."""
        yield OutputItemAdded(output_index=self._index, item=self.item("in_progress"))

    def add(self, delta: str) -> Iterator[ResponsesEvent]:
        """Nothing yet."""
        self._pieces.append(delta)
        yield from ()

    def finish(self, status: ItemStatus) -> Iterator[ResponsesEvent]:
        """The events of its input, and the one that closes it. None for a call that is not whole."""
        if self.is_whole:
            item = self.item(status)
            yield CustomToolCallInputDelta(item_id=self._id, output_index=self._index, delta=item.input)
            yield CustomToolCallInputDone(item_id=self._id, output_index=self._index, input=item.input)
            yield OutputItemDone(output_index=self._index, item=item)

    def item(self, status: ItemStatus) -> CustomCallItem:
        """The item. Its input is empty until the call is whole."""
        text = custom_input("".join(self._pieces)) if self.is_whole else ""
        namespace = UNSET if self._tool.namespace is None else self._tool.namespace
        return CustomCallItem(self._id, status, self._call_id, self._tool.name, text, namespace=namespace)


OpenCall: TypeAlias = OpenFunctionCall | OpenCustomCall
OpenItem: TypeAlias = OpenReasoning | OpenMessage | OpenRefusal | OpenCall
