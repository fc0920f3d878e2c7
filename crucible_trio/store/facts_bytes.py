"""Counts the memory of the facts that are stored with logs. A message that several streams share counts once.

The facts are counted as they are in memory, not as JSON: a text with one emoji takes four bytes for each character, and
a million empty objects take 24 times their JSON.
"""

from __future__ import annotations

from dataclasses import dataclass
from sys import getsizeof
from typing import NamedTuple, final

import msgspec

from crucible_trio.request import Message
from crucible_trio.stream import StreamFacts


@final
@dataclass(slots=True)
class _SharedMessage:
    message: Message  # keeps its id from being given to another object
    size: int
    holders: int = 0


class MeasuredFacts(NamedTuple):
    """The facts of one stream, measured.

    Attributes:
        own: The bytes that no other stream can share.
        messages: The messages that others can share, each with its bytes.
        new_bytes: The bytes that nothing has counted yet.
    """

    own: int
    messages: dict[int, _SharedMessage]
    new_bytes: int


@final
class FactsBytes:
    """Counts the facts of all streams of a store."""

    def __init__(self) -> None:
        self._held: dict[str, MeasuredFacts] = {}
        self._shared: dict[int, _SharedMessage] = {}

    def measure(self, facts: StreamFacts) -> MeasuredFacts:
        """Measure facts without counting them. Only messages that are kept for later requests can be shared."""
        request = facts.request
        rest = [value for value in _given_values(request) if value is not request.input]
        own = getsizeof(facts) + held_bytes(facts.id, *facts.for_apis.values(), *rest)
        if not facts.keeps_input or isinstance(request.input, str):
            own += held_bytes(request.input)
            return MeasuredFacts(own, {}, own)
        messages: dict[int, _SharedMessage] = {}
        new_bytes = own
        for message in request.input:
            shared = self._shared.get(id(message))
            if shared is None:
                shared = _SharedMessage(message, held_bytes(message))
                new_bytes += shared.size
            messages[id(message)] = shared
        return MeasuredFacts(own, messages, new_bytes)

    def add(self, stream_id: str, measured: MeasuredFacts) -> int:
        """Count the facts of a stream. Returns the bytes added. No other call may come after its `measure`."""
        self._held[stream_id] = measured
        for key, shared in measured.messages.items():
            shared.holders += 1
            self._shared[key] = shared
        return measured.new_bytes

    def remove(self, stream_id: str) -> int:
        """Count the facts of a stream no more. Returns the bytes freed: none if they are not counted."""
        measured = self._held.pop(stream_id, None)
        if measured is None:
            return 0
        freed = measured.own
        for key, shared in measured.messages.items():
            shared.holders -= 1
            if not shared.holders:
                del self._shared[key]
                freed += shared.size
        return freed


def held_bytes(*values: object) -> int:
    """The memory that values take, all of their parts included. Does not recurse."""
    total = 0
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, msgspec.Raw):  # `getsizeof` is wrong for it
            total += memoryview(value).nbytes
            continue
        total += getsizeof(value)
        if isinstance(value, str):  # most values
            continue
        if isinstance(value, dict):
            waiting += value
            waiting += value.values()
        elif isinstance(value, list | tuple | frozenset):
            waiting += value
        elif isinstance(value, msgspec.Struct):
            waiting += _given_values(value)
    return total


def _given_values(struct: msgspec.Struct) -> list[object]:
    """The values of a struct, without the defaults of its class, which all of its instances share."""
    values = [getattr(struct, name) for name in struct.__struct_fields__]
    defaults = struct.__struct_defaults__
    required = len(values) - len(defaults)
    given = zip(values[required:], defaults, strict=True)
    return values[:required] + [value for value, default in given if value is not default]
