"""The model's weights, and what drives an engine the way a stream does."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import trio

from crucible_trio.engine import Engine, Finish
from crucible_trio.engines.local.weights import find_weights
from crucible_trio.output import Output, Token
from crucible_trio.request import Request

Pieces: TypeAlias = list[tuple[int | None, str]]
Drive: TypeAlias = Callable[..., Awaitable[tuple[Pieces, Finish | None]]]


@pytest.fixture(scope="session")
def weights() -> Path:
    """The default model in the user's own cache; fetched by the first run on a machine."""
    return trio.run(find_weights).path


@pytest.fixture
def drive() -> Drive:
    """Run an engine into a channel and collect what comes out."""

    async def drive(
        engine: Engine, request: Request, *, buffer: int = 64, stop_after: float | None = None
    ) -> tuple[Pieces, Finish | None]:
        """Collect pairs of segment (None: the answer) and text; after `stop_after` pieces cancel, and no `Finish`."""
        send, receive = trio.open_memory_channel[Token](buffer)
        output = Output(send)
        finish: Finish | None = None
        error: Exception | None = None
        pieces: Pieces = []

        async def generate() -> None:
            nonlocal finish, error
            with send:
                try:
                    finish = await engine.generate(request, output)
                except Exception as raised:  # raised below, outside of the nursery that would wrap it
                    error = raised

        async with trio.open_nursery() as nursery:
            nursery.start_soon(generate)
            async with receive:
                async for token in receive:
                    pieces.append((token.segment, token.text))
                    if len(pieces) >= (math.inf if stop_after is None else stop_after):
                        nursery.cancel_scope.cancel()
                        break
        if error is not None:
            raise error
        return pieces, finish

    return drive
