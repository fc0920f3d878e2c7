"""Reads a body as the upstream engine does, without a socket."""

from __future__ import annotations

from typing import Literal, TypeAlias

from crucible_trio.content import (
    Piece,
    Reasoning,
    Refusal,
    ServerFields,
    Text,
    ToolCallArguments,
    ToolCallEnd,
    ToolCallStart,
)
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream.passed_fields import PassedFields
from crucible_trio.engines.upstream.reading import CompletionReader
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.engines.upstream.think import ThinkSplitter
from crucible_trio.errors import EngineError
from crucible_trio.records import UpstreamFields, encode_json

Kind: TypeAlias = Literal["trace", "answer", "refusal", "call"]
Parts: TypeAlias = list[tuple[Kind, str]]

WHOLE_CALL = "\N{END OF TRANSMISSION}"
"""Ends the text of a whole call, which is `name(arguments`."""

_KINDS: dict[type, Kind] = {Text: "answer", Reasoning: "trace", Refusal: "refusal"}


def join(pieces: list[Piece]) -> Parts:
    """The text by kind, neighbours joined. Checks that ids are unique and that the pieces of each call are together."""
    joined: Parts = []
    ids: set[str] = set()
    is_open = False
    for piece in pieces:
        match piece:
            case ToolCallStart():
                assert piece.id not in ids
                assert piece.id
                ids.add(piece.id)
                joined.append(("call", f"{piece.name}("))
                is_open = True
            case ToolCallArguments() | ToolCallEnd():
                assert is_open
                text = piece.text if isinstance(piece, ToolCallArguments) else WHOLE_CALL
                joined.append(("call", joined.pop()[1] + text))
                is_open = isinstance(piece, ToolCallArguments)
            case ServerFields():
                encode_json(UpstreamFields(1, piece.at, dict(piece.fields)))
            case _:
                kind = _KINDS[type(piece)]
                before = joined.pop()[1] if joined and joined[-1][0] == kind else ""
                joined.append((kind, before + piece.text))
                is_open = False
    return joined


def read(
    body: bytes,
    *,
    cuts: list[int] | None = None,
    was_cut: bool = False,
    as_promised: bool = False,
    skipped: SkippedFields | None = None,
) -> tuple[Parts, Finish | EngineError]:
    """Read a body in pieces. Returns its text, and how it ended."""
    reader = CompletionReader(ThinkSplitter(), skipped or SkippedFields(), 100_000, passed=PassedFields())
    pieces: list[Piece] = []
    for begin, end in zip([0, *(cuts or ())], [*(cuts or ()), len(body)], strict=True):
        if not reader.is_over:
            pieces += reader.feed(body[begin:end])
    pieces += reader.end(was_cut=was_cut, as_promised=as_promised)
    try:
        return join(pieces), reader.finish()
    except EngineError as error:
        return join(pieces), error
