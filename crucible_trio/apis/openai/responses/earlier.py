"""Earlier responses that a request refers to: `previous_response_id`, and items of type `item_reference`.

The messages of an earlier response's request are shared with the new one and not copied. Its output is read from its
log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, Protocol, final

import msgspec
import trio

from crucible_trio.apis.openai.errors import ItemNotFoundError, PreviousResponseNotFoundError
from crucible_trio.apis.openai.responses.objects import EchoedFields, OutputItem
from crucible_trio.apis.openai.responses.replay import response_object
from crucible_trio.errors import InvalidRequestError, StreamExpiredError, StreamNotFoundError
from crucible_trio.request import Message
from crucible_trio.stream import Stream

# The ids of output items, as the fold makes them.
_ITEM_ID: Final = re.compile(r"[a-z]{2,3}_(?P<random>[A-Za-z0-9_-]{22})_[0-9]+")

Item = Mapping[str, object]


class Earlier(NamedTuple):
    """The earlier responses of a request.

    Attributes:
        messages: The input of the previous response, without its instructions.
        output: The output of the previous response.
        items: The items that the input refers to, by their ids.
    """

    messages: tuple[Message, ...] = ()
    output: Sequence[Item] = ()
    items: Mapping[str, Item] = {}


class StoredResponses(Protocol):
    """Finds the responses that a client may use."""

    async def find(self, response_id: str) -> tuple[Stream, EchoedFields]:
        """Find a stored response of this client.

        Raises:
            StreamNotFoundError, StreamExpiredError: It does not exist, or not any more.
        """


async def find_earlier(previous_id: str | None, given: Sequence[Item], responses: StoredResponses) -> Earlier:
    """Find the earlier responses that a request refers to.

    Args:
        previous_id: The value of `previous_response_id`.
        given: The items of the input.
        responses: Where they are found.

    Raises:
        PreviousResponseNotFoundError, ItemNotFoundError: One of them is not there, or not any more.
        InvalidRequestError: The previous response has not ended, or a reference has no id.

    Checkpoints: for each earlier response. Cancellation: safe.
    """
    reader = _Reader(responses)
    items: dict[str, Item] = {}
    for index, item in enumerate(given):
        if is_reference(item):
            item_id = item.get("id")
            if not isinstance(item_id, str):
                raise InvalidRequestError("a reference to an item has its id", f"input[{index}].id")
            items[item_id] = await reader.item(item_id, f"input[{index}].id")
    if previous_id is None:
        return Earlier(items=items)
    messages, output = await reader.previous(previous_id)
    return Earlier(messages, output, items)


def is_reference(item: Item) -> bool:
    """Whether an item only names another one."""
    kind = item.get("type")
    return kind == "item_reference" or (kind is None and "id" in item and item.keys() <= {"type", "id"})


@final
class _Reader:
    def __init__(self, responses: StoredResponses) -> None:
        self._responses = responses
        self._read: dict[str, dict[str, OutputItem]] = {}

    async def previous(self, response_id: str) -> tuple[tuple[Message, ...], Sequence[Item]]:
        try:
            stream, echoed = await self._responses.find(response_id)
        except (StreamNotFoundError, StreamExpiredError) as error:
            raise PreviousResponseNotFoundError(response_id) from error
        if not stream.log.finished:
            message = "the previous response has not ended"
            raise InvalidRequestError(message, "previous_response_id")
        if not stream.facts.keeps_input:  # another API started it
            raise PreviousResponseNotFoundError(response_id)
        output = await self._output(response_id, stream, echoed)
        return without_instructions(stream, echoed), [_builtins(item) for item in output.values()]

    async def item(self, item_id: str, at: str) -> Item:
        found = _ITEM_ID.fullmatch(item_id)
        if found is None:
            raise ItemNotFoundError(item_id, at)
        response_id = f"resp_{found['random']}"
        try:
            stream, echoed = await self._responses.find(response_id)
        except (StreamNotFoundError, StreamExpiredError) as error:
            raise ItemNotFoundError(item_id, at) from error
        item = (await self._output(response_id, stream, echoed)).get(item_id)
        if item is None or item.status == "in_progress":
            raise ItemNotFoundError(item_id, at)
        return _builtins(item)

    async def _output(self, response_id: str, stream: Stream, echoed: EchoedFields) -> dict[str, OutputItem]:
        """The output of a response, by the ids of its items. A request may name thousands of items."""
        if response_id not in self._read:
            await trio.lowlevel.checkpoint()
            response = await response_object(stream.log, echoed)
            self._read[response_id] = {item.id: item for item in response.output}
        return self._read[response_id]


def without_instructions(stream: Stream, echoed: EchoedFields) -> tuple[Message, ...]:
    """The messages of a stream's request without the instructions, which do not carry over."""
    messages = stream.request.messages
    return messages[1:] if echoed.instructions else messages


def _builtins(item: msgspec.Struct) -> Item:
    builtins: dict[str, object] = msgspec.to_builtins(item)
    return builtins
