"""The wire of OpenAI's chat completions: chunks without numbers, so that a cut stream begins again at record 1.

`completion` and `error_of` say the same of a whole stream that `Chunks` says piece by piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final, Literal, final

import msgspec
from msgspec import UNSET, UnsetType

from crucible_trio import records, sse
from crucible_trio.records import (
    TERMINAL,
    CancelledBy,
    IncompleteReason,
    OutputDelta,
    ReasoningDelta,
    StreamCancelled,
    StreamCompleted,
    StreamCreated,
    StreamFailed,
    StreamIncomplete,
    Terminal,
    decode_frame,
    encode_json,
)
from crucible_trio.snapshot import Snapshot

_DONE: Final = sse.encode_line(b"[DONE]")

# The others of OpenAI's speak of tools. An engine may have words of its own, and some clients know a closed list.
_FINISH_REASONS: Final = frozenset({"stop", "length", "content_filter"})

# Codes of engines that say the request cannot be answered, by this model and at any time. `upstream_rejected` is not
# among them: it may be the key that this server shows to its upstream.
CLIENTS_FAULT: Final = frozenset({"prompt_too_long", "model_refused"})

# Where a limit ended the stream that the client has set or can know, the text counts as cut to length. A deadline is
# an accident: an answer that broke off in the middle must not look like one.
_CUT_TO_LENGTH: Final[frozenset[IncompleteReason]] = frozenset({"max_output_tokens", "log_limit"})

_DEADLINES: Final[dict[IncompleteReason, str]] = {
    "first_token_deadline": "The model did not begin in time.",
    "idle_deadline": "The model stopped in the middle.",
    "total_deadline": "The answer was not finished in time.",
}
_CANCELLED: Final[dict[CancelledBy, str]] = {
    "client": "The stream was cancelled.",
    "disconnect": "The stream was cancelled, because its client had left.",
    "shutdown": "The server is shutting down.",
}


@final
class ErrorBody(msgspec.Struct, frozen=True):
    """OpenAI's form of an error.

    Attributes:
        message: A sentence for people.
        type: Its kind, coarse.
        param: The field at fault, as a dotted path.
        code: Its kind, fine.
    """

    message: str
    type: str
    param: str | None
    code: str | None


@final
class _Error(msgspec.Struct, frozen=True):
    error: ErrorBody


@final
class _Details(msgspec.Struct, frozen=True):
    reasoning_tokens: int


@final
class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Tokens of prompt and completion; the reasoning is part of the completion."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    completion_tokens_details: _Details | None = None


@final
class _Delta(msgspec.Struct, frozen=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET


@final
class _Choice(msgspec.Struct, frozen=True):
    index: int
    delta: _Delta
    finish_reason: str | None = None


@final
class _Chunk(msgspec.Struct, frozen=True):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: tuple[_Choice, ...]
    usage: Usage | UnsetType | None = UNSET


@final
class _Message(msgspec.Struct, frozen=True):
    role: Literal["assistant"]
    content: str
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET


@final
class _WholeChoice(msgspec.Struct, frozen=True):
    index: int
    message: _Message
    finish_reason: str
    logprobs: None = None


@final
class Completion(msgspec.Struct, frozen=True):
    """A whole completion in one object; `usage` is left out where the engine did not count."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: tuple[_WholeChoice, ...]
    usage: Usage | UnsetType = UNSET


@final
class Chunks:
    """A log as the events of a streamed completion.

    A role chunk; a chunk for each piece of the trace, under both names that clients look for; one for each piece of the
    answer; a chunk with `finish_reason`; the usage, if it is asked for and the engine has counted; `[DONE]`. A stream
    that did not end well has, in place of the last three, an event with an `error`, which makes the SDKs raise.

    Args:
        include_usage: Send the usage, and `"usage": null` in every other chunk.
    """

    resumes: ClassVar = False

    def __init__(self, *, include_usage: bool = False) -> None:
        self._include_usage = include_usage
        self._no_usage: UnsetType | None = None if include_usage else UNSET
        self._id = ""
        self._created = 0
        self._model = ""

    def feed(self, frames: Sequence[bytes]) -> bytes:
        """Take the next records; see `Dialect`."""
        return b"".join(self._one(decode_frame(frame)) for frame in frames)

    def _one(self, record: records.AnyRecord) -> bytes:
        match record:
            case StreamCreated():
                self._id, self._created = format_id(record.stream), int(record.created_at)
                self._model = record.model
                return self._delta(_Delta(role="assistant", content=""))
            case ReasoningDelta(delta=text):
                return self._delta(_Delta(reasoning_content=text, reasoning=text))
            case OutputDelta(delta=text):
                return self._delta(_Delta(content=text))
        return self._end(record) if isinstance(record, TERMINAL) else b""

    def _delta(self, delta: _Delta, finish_reason: str | None = None) -> bytes:
        return self._chunk((_Choice(0, delta, finish_reason),), self._no_usage)

    def _end(self, terminal: Terminal) -> bytes:
        error = error_of(terminal)
        if error is not None:
            return sse.encode_line(encode_json(_Error(error)))
        events = [self._delta(_Delta(), _finish_reason(terminal))]
        if self._include_usage and (usage := usage_of(terminal.usage)) is not None:
            events.append(self._chunk((), usage))
        return b"".join([*events, _DONE])

    def _chunk(self, choices: tuple[_Choice, ...], usage: Usage | UnsetType | None) -> bytes:
        chunk = _Chunk(self._id, "chat.completion.chunk", self._created, self._model, choices, usage)
        return sse.encode_line(encode_json(chunk))


def completion(snapshot: Snapshot, terminal: Terminal) -> Completion:
    """A stream that has ended well, as one object.

    Args:
        snapshot: Its log.
        terminal: Its last record, one that `error_of` has no error for.
    """
    trace = "".join(snapshot.trace) if snapshot.trace else UNSET
    message = _Message("assistant", snapshot.output, reasoning_content=trace, reasoning=trace)
    usage = usage_of(terminal.usage)
    return Completion(
        id=format_id(snapshot.id),
        object="chat.completion",
        created=int(snapshot.created_at),
        model=snapshot.model,
        choices=(_WholeChoice(0, message, _finish_reason(terminal)),),
        usage=UNSET if usage is None else usage,
    )


def error_of(terminal: Terminal) -> ErrorBody | None:
    """What a client must be told instead of a finish reason; None for a stream that ended well.

    Args:
        terminal: The stream's last record.
    """
    match terminal:
        case StreamFailed(error=error):
            kind = "invalid_request_error" if error.code in CLIENTS_FAULT else "server_error"
            return ErrorBody(error.message, kind, None, error.code)
        case StreamIncomplete(reason=reason) if reason not in _CUT_TO_LENGTH:
            return ErrorBody(_DEADLINES[reason], "server_error", None, reason)
        case StreamCancelled(by=by):
            return ErrorBody(_CANCELLED[by], "server_error", None, "cancelled")
    return None


def _finish_reason(terminal: Terminal) -> str:
    if not isinstance(terminal, StreamCompleted):
        return "length"
    return terminal.finish_reason if terminal.finish_reason in _FINISH_REASONS else "stop"


def usage_of(usage: records.Usage) -> Usage | None:
    """The usage in OpenAI's words; None where the engine did not count both sides, because clients add them up."""
    if usage.input_tokens is None or usage.output_tokens is None:
        return None
    details = None if usage.reasoning_tokens is None else _Details(usage.reasoning_tokens)
    return Usage(usage.input_tokens, usage.output_tokens, usage.input_tokens + usage.output_tokens, details)


def format_id(stream_id: str) -> str:
    """The id of a completion, from its stream's."""
    return f"chatcmpl-{stream_id.removeprefix('str_')}"
