"""Reads a body as the upstream engine does, without a socket."""

from __future__ import annotations

from typing import Literal, TypeAlias

from crucible_trio.content import Piece, Reasoning, Refusal, Text
from crucible_trio.engine import Finish
from crucible_trio.engines.upstream.reading import CompletionReader
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.engines.upstream.think import ThinkSplitter
from crucible_trio.errors import EngineError

Kind: TypeAlias = Literal["trace", "answer", "refusal"]
Parts: TypeAlias = list[tuple[Kind, str]]

_KINDS: dict[type, Kind] = {Text: "answer", Reasoning: "trace", Refusal: "refusal"}


def join(pieces: list[Piece]) -> Parts:
    """The text by kind, neighbours joined."""
    joined: Parts = []
    for piece in pieces:
        assert isinstance(piece, Text | Reasoning | Refusal)
        kind = _KINDS[type(piece)]
        before = joined.pop()[1] if joined and joined[-1][0] == kind else ""
        joined.append((kind, before + piece.text))
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
    reader = CompletionReader(ThinkSplitter(), skipped or SkippedFields(), 100_000)
    pieces: list[Piece] = []
    for begin, end in zip([0, *(cuts or ())], [*(cuts or ()), len(body)], strict=True):
        if not reader.is_over:
            pieces += reader.feed(body[begin:end])
    pieces += reader.end(was_cut=was_cut, as_promised=as_promised)
    try:
        return join(pieces), reader.finish()
    except EngineError as error:
        return join(pieces), error
