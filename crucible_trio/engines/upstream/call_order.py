"""Put the tool calls of a completion in order: one call at a time, with one id and one name. No trio here.

Clients take a call for done when something else begins. So when the server sends something else while the arguments of
the open call are not yet a whole JSON value, it waits until they are, or until the completion ends.

Easy to get wrong:

* Some servers number all their calls 0, or do not number them. Some repeat name and id in every piece, and some name
  only the first. Some give all their calls one id. A piece begins another call if it has another id and a name, or if
  it brings a name and arguments although the arguments so far are whole, or if it brings another name before or after
  the arguments. So a name that comes in pieces is not joined: each of them would be the name of a call.
* `{}` may be whole, and may be the beginning of a server that sends `{}` first. So a call stays open until something
  else comes.
* Arguments that are cut must not look whole. Some servers say `tool_calls` although the token limit cut the arguments.
* Arguments that are no JSON, but not cut either, are the model's to answer for.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Sequence
from typing import Final, final

from crucible_trio.content import Piece, Text, TextPiece, ToolCallArguments, ToolCallEnd, ToolCallStart
from crucible_trio.engines.upstream.call_pieces import CallPiece
from crucible_trio.engines.upstream.json_end import JsonEnd
from crucible_trio.errors import EngineError
from crucible_trio.output import MAX_CALL_NAME_LENGTH

# Characters that may wait for the end of the open call, over all calls and texts.
MAX_WAITING_LENGTH: Final = 1024 * 1024
# What each of them costs besides its text. Bounds the number of empty ones.
_ENTRY_LENGTH: Final = 256


@final
class _Call:
    """One call of the server.

    Attributes:
        id: The server's id for it, or empty.
        name: The tool's name. Empty until it has come.
        held: The arguments that have come and are not out yet.
        json: Follows the arguments.
        has_value: Whether a value came in place of their text.
        has_begun: Whether its start is out.
        has_ended: Whether its end is out.
        cost: Its share of the waiting length, besides its arguments.
    """

    def __init__(self, first: CallPiece) -> None:
        self.cost = _ENTRY_LENGTH + len(first.name) + len(first.id)
        self.id = ""
        self.name = ""
        self.held: list[str] = []
        self.json = JsonEnd()
        self.has_value = False
        self.has_begun = False
        self.has_ended = False

    @property
    def is_closed(self) -> bool:
        """Whether the arguments are whole."""
        return self.has_value or self.json.is_closed


@final
class CallOrder:
    """Orders the calls of one completion, and the text around them.

    Attributes:
        failure: Why the calls cannot be put in order.
        has_ended_calls: Whether any call is whole.
        was_cut: After `end`: whether a call was cut.
    """

    def __init__(self) -> None:
        self.failure: EngineError | None = None
        self.has_ended_calls = False
        self.was_cut = False
        self._open: _Call | None = None
        self._waiting: deque[_Call | TextPiece] = deque()
        self._waiting_length = 0
        self._last: _Call | None = None
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self._used_ids: set[str] = set()

    def add_text(self, piece: TextPiece, pieces: list[Piece]) -> None:
        """Take a text. It goes to `pieces` when it may."""
        self._waiting.append(piece)
        self._waiting_length += _cost(piece)
        self._drain(pieces)

    def add_calls(self, found: Sequence[CallPiece], pieces: list[Piece]) -> None:
        """Take the pieces of calls in one chunk. They go to `pieces` when they may."""
        seen: set[_Call] = set()
        for piece in found:
            call = self._call_of(piece, seen)
            seen.add(call)
            call.name = call.name or piece.name
            call.id = call.id or piece.id
            if len(call.name) > MAX_CALL_NAME_LENGTH:
                call.name = ""  # so that it is not written: no output takes it
                self._fail(f"a tool call with a name of more than {MAX_CALL_NAME_LENGTH} characters")
            elif piece.is_too_deep:
                self._fail("arguments of a tool call that are nested too deeply")
            elif not call.json.is_empty and (piece.is_value or (call.has_value and piece.arguments.strip())):
                self._fail("arguments of a tool call that are partly text and partly not")
            elif not call.has_ended:
                call.has_value = call.has_value or piece.is_value
                call.held.append(piece.arguments)
                call.json.feed(piece.arguments)
                self._waiting_length += len(piece.arguments)
                self._drain(pieces)
            elif piece.arguments.strip():
                self._fail("arguments for a tool call that has ended")

    def end(self, pieces: list[Piece], *, is_whole: bool, is_limited: bool) -> None:
        """End the completion. Everything that waits goes to `pieces`.

        Args:
            pieces: Where to. A call without its end was cut.
            is_whole: Whether the model has ended. Otherwise no call is whole.
            is_limited: Whether the token limit ended it, so the last call may be cut where no bracket shows it.
        """
        while True:
            if (call := self._open) is not None:
                self._open = None
                self._write(call, pieces)
                is_cut = call.json.is_open or (is_limited and not self._waiting and not call.is_closed)
                if is_whole and not call.has_begun:
                    self._fail("a tool call without a name")
                elif is_whole and not is_cut:
                    self._end_call(call, pieces)
                else:
                    self.was_cut = True
            if not self._waiting:
                return
            self._take_next(pieces)

    def _call_of(self, piece: CallPiece, seen: set[_Call]) -> _Call:
        """The call that a piece belongs to."""
        if piece.index is not None:
            call = self._by_index.get(piece.index)
        elif piece.id in self._by_id:
            call = self._by_id[piece.id]
        else:
            call = self._last
        if call is None or _begins_another(piece, call, in_one_chunk=call in seen):
            call = _Call(piece)
            self._waiting.append(call)
            self._waiting_length += call.cost
        if piece.index is not None:
            self._by_index[piece.index] = call
        if piece.id:
            self._by_id[piece.id] = call
        self._last = call
        return call

    def _drain(self, pieces: list[Piece]) -> None:
        """Write as much as may be written now."""
        while True:
            if (call := self._open) is not None:
                self._write(call, pieces)
                if not self._waiting or not call.has_begun or not call.is_closed:
                    break
                self._end_call(call, pieces)
                self._open = None
            if not self._waiting:
                break
            self._take_next(pieces)
        if self._waiting_length > MAX_WAITING_LENGTH:
            self._fail("a tool call whose arguments did not end while others came")

    def _take_next(self, pieces: list[Piece]) -> None:
        first = self._waiting.popleft()
        if isinstance(first, _Call):
            self._waiting_length -= first.cost
            self._open = first
        else:
            self._waiting_length -= _cost(first)
            pieces.append(first)

    def _write(self, call: _Call, pieces: list[Piece]) -> None:
        """Write the parts of the open call that have come."""
        if not call.name:
            return
        if not call.has_begun:
            call.has_begun = True
            pieces.append(ToolCallStart(self._new_id(call.id), call.name))
        if arguments := "".join(call.held):
            pieces.append(ToolCallArguments(arguments))
        self._waiting_length -= len(arguments)
        call.held.clear()

    def _end_call(self, call: _Call, pieces: list[Piece]) -> None:
        if call.json.is_empty:  # a tool without arguments. Clients parse them as JSON
            pieces.append(ToolCallArguments("{}"))
        pieces.append(ToolCallEnd())
        call.has_ended = self.has_ended_calls = True

    def _new_id(self, given: str) -> str:
        """The server's id, or another if clients could not use it."""
        if not given or given in self._used_ids:
            given = f"call_{secrets.token_hex(12)}"
        self._used_ids.add(given)
        return given

    def _fail(self, found: str) -> None:
        message = f"The upstream server sent {found}."
        self.failure = self.failure or EngineError("upstream_invalid_response", message)


def _cost(piece: TextPiece) -> int:
    logprobs = piece.logprobs or () if isinstance(piece, Text) else ()
    return len(piece.text) + _ENTRY_LENGTH * (1 + len(logprobs))


def _begins_another(piece: CallPiece, call: _Call, *, in_one_chunk: bool) -> bool:
    """Whether a piece that seems to belong to a call begins another one."""
    if not piece.name:
        return False
    may_have_ended = call.is_closed or call.json.is_empty
    has_other_name = bool(call.name) and piece.name != call.name
    if piece.id and piece.id == call.id:  # in every piece of one call, or in every call
        grows_again = call.is_closed and (piece.is_value or piece.arguments.lstrip().startswith("{"))
        return (bool(call.name) and grows_again) or (has_other_name and may_have_ended)
    if piece.index is None and (in_one_chunk or (piece.id and call.id)):
        return True
    if piece.id and call.id:  # the id may also differ in every piece
        return may_have_ended
    if has_other_name:
        return piece.index is None or may_have_ended
    return call.is_closed and (bool(piece.arguments.strip()) or (piece.index is None and call.has_ended))
