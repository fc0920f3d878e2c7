"""The part of xllamacpp's API that the local engine uses: one call, and the chunks it passes to its callback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec


class ModelServer(Protocol):
    """The used part of xllamacpp's `Server`."""

    def handle_chat_completions(self, request: dict[str, object], callback: Callable[[object], bool], /) -> object:
        """Block until the last chunk, or until the callback returns True. The callback's exceptions are swallowed."""


class ModelDelta(msgspec.Struct):
    """The text of a chunk, in whole characters."""

    content: str | None = None


class ModelChoice(msgspec.Struct):
    """The model's text, and why the model ended: `stop` or `length`."""

    delta: ModelDelta
    finish_reason: str | None = None


class ModelError(msgspec.Struct):
    """An error. The numbers are set for `exceed_context_size_error`."""

    type: str = ""
    n_prompt_tokens: int = 0
    n_ctx: int = 0


class ModelPromptProgress(msgspec.Struct):
    """Sent while a prompt is read (`return_progress`): its tokens in total."""

    total: int


class ModelTimings(msgspec.Struct):
    """The tokens generated so far (`timings_per_token`)."""

    predicted_n: int = 0


class ModelChunk(msgspec.Struct):
    """The callback's argument. Unknown fields are ignored."""

    choices: list[ModelChoice] = []
    error: ModelError | None = None
    prompt_progress: ModelPromptProgress | None = None
    timings: ModelTimings | None = None
