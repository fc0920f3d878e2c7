"""What an engine is: the request it gets, the result it gives, and how a plain function becomes one.

Source of the shapes: docs/reference/protocol.md, `POST /v1/streams`; the JSON body of that request is a `Request`.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeAlias, cast, final

import msgspec

from crucible_trio.config import Settings
from crucible_trio.errors import EngineError, InvalidRequestError
from crucible_trio.output import Output
from crucible_trio.records import Mode, Usage

Trace: TypeAlias = Literal["segments", "final", "none"]
OnDisconnect: TypeAlias = Literal["pause", "continue", "cancel"]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


@final
class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, msgspec.Meta(min_length=1)]


@final
class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the model picks tokens; None leaves it to the engine. An engine says which fields it honours."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    stop: (
        Annotated[tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=256)], ...], msgspec.Meta(max_length=16)]
        | None
    ) = None

    @property
    def given(self) -> frozenset[str]:
        """The names of the fields that are set."""
        return frozenset(name for name in self.__struct_fields__ if getattr(self, name) is not None)


@final
class Deadlines(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long a stream may take, in seconds; None is the server's default."""

    first_token_seconds: Seconds | None = None
    idle_seconds: Seconds | None = None
    total_seconds: Seconds | None = None


class _RequestFields(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input: Annotated[str, msgspec.Meta(min_length=1)] | Annotated[tuple[Message, ...], msgspec.Meta(min_length=1)]
    mode: Mode = "standard"
    model: str | None = None
    max_output_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    sampling: Sampling = Sampling()
    trace: Trace = "segments"
    on_disconnect: OnDisconnect | None = None
    grace_seconds: Seconds | None = None
    deadlines: Deadlines = Deadlines()


@final
class Request(_RequestFields, frozen=True, forbid_unknown_fields=True):
    """What a client asks for.

    Attributes:
        input: The prompt, or the conversation so far.
        mode: `deep` reasons before it answers.
        model: One of the engine's models; None is its first.
        max_output_tokens: Reasoning and answer together; None is the engine's default.
        sampling: How the model picks tokens.
        trace: The default view of the stream's readers; never a change of the log.
        on_disconnect: What happens while nobody reads; None depends on how the stream is started.
        grace_seconds: How long a stream without readers waits for one; None is the server's default.
        deadlines: How long the stream may take.

    Raises:
        ValueError: A value is out of its range, at construction.
    """

    def __post_init__(self) -> None:
        # msgspec checks what it decodes; a program's own request goes through the same rules here.
        msgspec.convert(msgspec.to_builtins(self), _RequestFields)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation; a plain prompt is one user message."""
        return (Message("user", self.input),) if isinstance(self.input, str) else self.input


@final
@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the trace, as an async generator engine yields it; a `str` is a piece of the answer."""

    text: str
    segment: int = 0


@final
@dataclass(frozen=True, slots=True)
class Finish:
    """An engine's result.

    Attributes:
        reason: `stop`, or `length` when the token limit ended it.
        usage: Tokens as the engine counted them.
    """

    reason: str = "stop"
    usage: Usage = Usage()  # noqa: RUF009 - frozen: one instance for all is safe


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself.

    Attributes:
        name: For logs.
        models: The models a request may name; the first is the default.
        sampling: The fields of `Sampling` it honours; a request that sets others is refused.
    """

    name: str
    models: tuple[str, ...]
    sampling: frozenset[str] = frozenset()


class Engine(Protocol):
    """Where tokens come from. A bare function can be one too: see `as_engine`."""

    @property
    def info(self) -> EngineInfo:
        """What the engine can do."""

    def generate(self, request: Request, output: Output) -> Awaitable[Finish]:
        """Write the tokens of one stream to `output`: a coroutine function.

        Called in a task of its own. Cancellation is how a stream is stopped: let it pass, and free what is held.

        Args:
            request: With `model` filled in.
            output: Where the tokens go.

        Returns:
            Why it ended. No token and a `Finish` is a completed stream with an empty answer.

        Raises:
            EngineError: With a code and a message for the client. Any other exception reaches the client as
                `engine_error` without its details.
        """


GenerateFunction: TypeAlias = Callable[[Request, Output], Awaitable[Finish]]
GeneratorFunction: TypeAlias = Callable[[Request], AsyncGenerator[str | Reasoning | Finish, None]]
SafeChannelFunction: TypeAlias = Callable[
    [Request], AbstractAsyncContextManager[AsyncIterable[str | Reasoning | Finish]]
]


def as_engine(source: Engine | GenerateFunction | GeneratorFunction | SafeChannelFunction) -> Engine:
    """Make an engine of what a user wrote.

    Args:
        source: An engine object; a coroutine function `(request, output) -> Finish`; or an async generator function
            `(request)` that yields `str` for the answer, `Reasoning` for the trace and may yield `Finish` last. An
            async generator that holds a nursery or cancel scope open over a `yield` is wrapped by its author with
            `trio.as_safe_channel` first. A bare function is one model named after it that honours no sampling field.

    Raises:
        TypeError: It is none of these.
    """
    if hasattr(source, "generate") and hasattr(source, "info"):
        return source
    name = getattr(source, "__name__", type(source).__name__)
    info = EngineInfo(name=name, models=(name,))
    if inspect.isasyncgenfunction(source):
        return _FunctionEngine(info, _adapt_generator(source))
    if hasattr(source, "__wrapped__") and inspect.isasyncgenfunction(inspect.unwrap(source)):
        return _FunctionEngine(info, _adapt_safe_channel(cast("SafeChannelFunction", source)))
    if inspect.iscoroutinefunction(source):
        return _FunctionEngine(info, source)
    message = f"{source!r} is no engine: it has no generate and info, and is no async function"
    raise TypeError(message)


@final
@dataclass(frozen=True, slots=True)
class _FunctionEngine:
    info: EngineInfo
    function: GenerateFunction

    def generate(self, request: Request, output: Output) -> Awaitable[Finish]:
        return self.function(request, output)


def _adapt_generator(function: GeneratorFunction) -> GenerateFunction:
    async def generate(request: Request, output: Output) -> Finish:
        async with aclosing(function(request)) as pieces:
            return await _write_pieces(pieces, output)

    return generate


def _adapt_safe_channel(function: SafeChannelFunction) -> GenerateFunction:
    async def generate(request: Request, output: Output) -> Finish:
        async with function(request) as pieces:
            return await _write_pieces(pieces, output)

    return generate


async def _write_pieces(pieces: AsyncIterable[object], output: Output) -> Finish:
    written = False
    async for piece in pieces:
        match piece:
            case str():
                await output.delta(piece)
                written = written or piece != ""
            case Reasoning(text, segment):
                await output.reasoning(text, segment)
                written = written or text != ""
            case Finish():
                return piece
            case _:
                raise EngineError("engine_protocol", f"The engine yielded a {type(piece).__name__}.")
    if not written:
        raise EngineError("empty_output", "The engine ended without a token.")
    return Finish()


def check_request(request: Request, info: EngineInfo, settings: Settings) -> None:
    """Refuse what cannot be done.

    Raises:
        InvalidRequestError: The model is not one of the engine's models, the engine does not honour a sampling field
            that is set, or a number is over the server's maximum.
    """
    if request.model is not None and request.model not in info.models:
        message = f"there is no model {request.model!r}; there is {', '.join(info.models)}"
        raise InvalidRequestError(message, "model")
    for name in sorted(request.sampling.given - info.sampling):
        message = f"the model does not honour sampling.{name}"
        raise InvalidRequestError(message, f"sampling.{name}")
    numbers = (
        ("max_output_tokens", request.max_output_tokens, settings.max_output_tokens),
        ("grace_seconds", request.grace_seconds, settings.max_grace_seconds),
        ("deadlines.first_token_seconds", request.deadlines.first_token_seconds, settings.max_deadline_seconds),
        ("deadlines.idle_seconds", request.deadlines.idle_seconds, settings.max_deadline_seconds),
        ("deadlines.total_seconds", request.deadlines.total_seconds, settings.max_deadline_seconds),
    )
    for param, asked, maximum in numbers:
        if asked is not None and asked > maximum:
            message = f"{param} is at most {maximum:g} here"
            raise InvalidRequestError(message, param)
