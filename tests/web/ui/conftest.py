"""Fixtures for the tests of the UI message stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest


def _ask_body(text: str = "Why?", chat: str | None = "chat 1", **more: object) -> dict[str, object]:
    message = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": text}]}
    body = {"id": chat, "messages": [message], "trigger": "submit-message"} | more
    return {name: value for name, value in body.items() if value is not None}


@pytest.fixture(scope="session")
def ask_body() -> Callable[..., dict[str, object]]:
    """The body of a request, as `useChat` sends it."""
    return _ask_body


def _chunks_of(body: bytes) -> list[dict[str, Any]]:
    *blocks, rest = body.replace(b": ping\n\n", b"").decode().split("\n\n")
    assert not rest
    assert all(block.startswith("data: ") for block in blocks)
    if blocks and blocks[-1] == "data: [DONE]":
        blocks.pop()
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


@pytest.fixture(scope="session")
def chunks_of() -> Callable[[bytes], list[dict[str, Any]]]:
    """The chunks of a body, without `[DONE]`."""
    return _chunks_of
