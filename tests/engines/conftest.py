"""Fixtures: the model's weights, and a driver that runs an engine as a stream does."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import trio

from crucible_trio.content import Piece, ServerFields
from crucible_trio.engine import Engine, Finish
from crucible_trio.engines.local.weights import find_weights
from crucible_trio.output import Output
from crucible_trio.request import Request

Pieces: TypeAlias = list[tuple[int | None, str]]
Drive: TypeAlias = Callable[..., Awaitable[tuple[Pieces, Finish | None]]]


@pytest.fixture(scope="session")
def weights() -> Path:
    """The default model in the user's cache. The first run on a machine downloads it."""
    return trio.run(find_weights).path


@pytest.fixture
def drive() -> Drive:
    """A function that runs an engine and collects its pieces."""

    async def drive(
        engine: Engine, request: Request, *, buffer: int = 64, stop_after: float | None = None
    ) -> tuple[Pieces, Finish | None]:
        """Run the engine, and cancel it after `stop_after` pieces.

        Returns:
            The pieces as pairs of segment (None: the answer) and text, and the `Finish` (None if cancelled).
        """
        send, receive = trio.open_memory_channel[Piece](buffer)
        output = Output(send)
        finish: Finish | None = None
        error: Exception | None = None
        pieces: Pieces = []

        async def generate() -> None:
            nonlocal finish, error
            with send:
                try:
                    finish = await engine.generate(request, output)
                except Exception as raised:  # raised again outside the nursery, which would wrap it in a group
                    error = raised

        async with trio.open_nursery() as nursery:
            nursery.start_soon(generate)
            async with receive:
                async for piece in receive:
                    if isinstance(piece, ServerFields):
                        continue
                    pieces.append((getattr(piece, "segment", None), piece.text))
                    if len(pieces) >= (math.inf if stop_after is None else stop_after):
                        nursery.cancel_scope.cancel()
                        break
        if error is not None:
            raise error
        return pieces, finish

    return drive
