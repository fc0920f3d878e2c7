"""The engine contract: declaration, call and result. A plain function can become an engine."""

from __future__ import annotations

import inspect
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, Self, TypeAlias, TypeGuard, cast, final, runtime_checkable

from crucible_trio.content import Reasoning, Refusal, Text, ToolCallArguments, ToolCallEnd, ToolCallStart
from crucible_trio.errors import EngineError
from crucible_trio.output import Output, ToolCallOutput
from crucible_trio.records import Usage
from crucible_trio.request import Request


@final
@dataclass(frozen=True, slots=True)
class Finish:
    """An engine's result.

    Attributes:
        reason: `stop`, `tool_calls`, or `length` when the token limit ended it. The reason of another limit, such as
            `idle_deadline`, ends the stream as `incomplete` too.
        usage: Tokens as the engine counted them.
        stop_string: The stop string of the request that ended the answer, where the engine knows it.
    """

    reason: str = "stop"
    usage: Usage = Usage()  # noqa: RUF009 - frozen: one instance for all is safe
    stop_string: str | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The capabilities of a model. A request that needs more is refused, with the name of the field.

    Attributes:
        tools: Tools in a request, tool calls and their results in its messages.
        images: Image parts in messages.
        files: File parts in messages.
        audio: Audio parts in messages.
        structured_output: A `response_format` other than text.
        logprobs: Log probabilities of the answer's tokens.
        reasoning_input: The reasoning of earlier turns.
        sampling: The fields of `Sampling` that it honours, and `verbosity`.
        unknown_fields: Fields in `extra`, which the engine judges.
    """

    tools: bool = False
    images: bool = False
    files: bool = False
    audio: bool = False
    structured_output: bool = False
    logprobs: bool = False
    reasoning_input: bool = False
    sampling: frozenset[str] = frozenset()
    unknown_fields: bool = False

    @property
    def names(self) -> frozenset[str]:
        """The names of the capabilities that are on, without the fields of `sampling`."""
        return frozenset(name for name in self.__slots__ if name != "sampling" and getattr(self, name))

    @classmethod
    def of(cls, names: Collection[str], sampling: Collection[str] = ()) -> Self:
        """The capabilities with these names. Unknown names are ignored."""
        known = cls.__dataclass_fields__.keys() - {"sampling"}
        return cls(**dict.fromkeys(known.intersection(names), True), sampling=frozenset(sampling))

    def __and__(self, other: Capabilities) -> Capabilities:
        """The capabilities that both have."""
        return Capabilities.of(self.names & other.names, self.sampling & other.sampling)


_NONE: Final = Capabilities()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine declares.

    Attributes:
        name: For logs, metrics and the list of models.
        models: The models that a request may name. The first is the default.
        capabilities: Those of its models.
        by_model: Those of single models, by name, where they differ.
        notice: A sentence for users, such as that the engine is not a model. The start log and the page show it.
        waits_for_upstream: Whether it asks another server, and calls `output.accepted` when that server has accepted.
            Some APIs then wait with their status line, so that a refusal becomes a status.
        is_up: Whether the server that the engine asks responds. None: there is none, or it has not been asked yet.
    """

    name: str
    models: tuple[str, ...]
    capabilities: Capabilities = _NONE
    by_model: Mapping[str, Capabilities] = field(default_factory=dict)
    notice: str = ""
    waits_for_upstream: bool = False
    is_up: bool | None = None

    def capabilities_of(self, model: str) -> Capabilities:
        """The capabilities of one of the models."""
        return self.by_model.get(model, self.capabilities)


class Engine(Protocol):
    """Generates the content of streams. A bare function can be an engine too: see `as_engine`."""

    @property
    def info(self) -> EngineInfo:
        """Name, models and capabilities. They may change while the engine runs, as when an upstream comes up."""

    def generate(self, request: Request, output: Output) -> Awaitable[Finish]:
        """Write the content of one stream to `output`: a coroutine function.

        The call has a task to itself. Cancellation stops a stream: let it pass, and free the resources of the call.

        Args:
            request: With `model` filled in.
            output: Takes the pieces.

        Returns:
            Why it ended. No piece and a `Finish` is a completed stream with an empty answer.

        Raises:
            EngineError: With a code and a message for the client. Any other exception reaches the client as
                `engine_error` without its details.
        """


@runtime_checkable
class RoutesModels(Protocol):
    """An engine that passes requests on to others, such as `crucible_trio.engines.router.RouterEngine`."""

    @property
    def engines(self) -> Sequence[Engine]:
        """All engines that it may pass requests on to. Metrics and `/readyz` name them."""

    def engine_of(self, model: str) -> Engine:
        """The engine behind a model. Metrics and the list of models name that one."""


@runtime_checkable
class CountsAbandonedThreads(Protocol):
    """An engine whose threads cannot always be interrupted."""

    @property
    def abandoned_threads(self) -> int:
        """Threads whose stream ended before them, since the start."""


@runtime_checkable
class CountsSkippedFields(Protocol):
    """An engine that reads another server's streams, and skips what it does not understand."""

    @property
    def skipped_fields(self) -> int:
        """Values and events skipped, since the start."""


PassedPath: TypeAlias = Literal["completions", "embeddings"]
"""Where a request is passed on to, below the base URL of the server."""


@runtime_checkable
class PassesOn(Protocol):
    """An engine that asks another server, and can pass on requests of APIs that this package does not have."""

    async def pass_on(self, path: PassedPath, fields: Mapping[str, object], *, has_fallback: bool = False) -> bytes:
        """Send a request and return the whole body of the answer: JSON.

        Sends no header of the client. Sends the request again only if no status came.

        Args:
            path: Where to.
            fields: The request's body, with the name of the model and without `stream`. The fields that the operator
                has chosen win over them.
            has_fallback: As `Output.has_fallback`.

        Raises:
            EngineError: As for `Engine.generate`.

        Cancellation: closes the connection to the server.
        """


def engines_behind(engine: Engine) -> Iterator[Engine]:
    """The engines that generate: `engine`, or all that it passes requests on to."""
    if isinstance(engine, RoutesModels):
        for part in engine.engines:
            yield from engines_behind(part)
    else:
        yield engine


def passing_engines(engine: Engine, model: str) -> list[PassesOn]:
    """The engines behind `engine` that pass on requests for a model, in the order in which to ask them.

    Engines whose server does not respond come last.
    """
    engines = [part for part in engines_behind(engine) if model in part.info.models]
    engines.sort(key=lambda part: part.info.is_up is False)
    return [part for part in engines if isinstance(part, PassesOn)]


def engine_of(engine: Engine, model: str) -> Engine:
    """The engine that generates for a model: `engine`, or the one that it routes the model to."""
    return engine_of(engine.engine_of(model), model) if _routes_models(engine) else engine


def _routes_models(engine: Engine) -> TypeGuard[RoutesModels]:
    # Every start asks this, and `isinstance` of a Protocol takes 20 us.
    return hasattr(engine, "engine_of")


Yielded: TypeAlias = str | Text | Reasoning | Refusal | ToolCallStart | ToolCallArguments | ToolCallEnd | Finish
"""The values that an async generator engine may yield."""

GenerateFunction: TypeAlias = Callable[[Request, Output], Awaitable[Finish]]
GeneratorFunction: TypeAlias = Callable[[Request], AsyncGenerator[Yielded, None]]
SafeChannelFunction: TypeAlias = Callable[[Request], AbstractAsyncContextManager[AsyncIterable[Yielded]]]
EngineSource: TypeAlias = Engine | GenerateFunction | GeneratorFunction | SafeChannelFunction


def as_engine(source: EngineSource) -> Engine:
    """Make an engine of a function.

    Args:
        source: An engine object, which is returned. Or a coroutine function `(request, output) -> Finish`. Or an async
            generator function `(request)` that yields `str` or `Text` for the answer, `Reasoning` for the trace,
            `Refusal`, `ToolCallStart`, `ToolCallArguments` and `ToolCallEnd` for a tool call, and may yield `Finish`
            last. The author of an async generator that holds a nursery or cancel scope open over a `yield` wraps it
            with `trio.as_safe_channel` first. A function is one model, named after it, without any capability.

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
    message = f"{source!r} is not an engine: it has no generate and info, and is not an async function"
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
    """Write everything that a generator yields, until it yields `Finish` or ends."""
    is_empty = True
    call: ToolCallOutput | None = None
    async with AsyncExitStack() as stack:
        async for piece in pieces:
            match piece:
                case str(text) | Text(text=text, logprobs=None):
                    await output.delta(text)
                    is_empty = is_empty and text == ""
                case Text(text=text, logprobs=logprobs):
                    await output.delta(text, logprobs)
                    is_empty = is_empty and text == "" and not logprobs
                case Reasoning(text=text, segment=segment):
                    await output.reasoning(text, segment)
                    is_empty = is_empty and text == ""
                case Refusal(text=text):
                    await output.refusal(text)
                    is_empty = is_empty and text == ""
                case ToolCallStart(id=call_id, name=name):
                    call = await stack.enter_async_context(output.tool_call(call_id, name))
                    is_empty = False
                case ToolCallArguments(text=text) if call is not None:
                    await call.arguments(text)
                case ToolCallEnd() if call is not None:
                    call = None
                    await stack.pop_all().aclose()
                case Finish():
                    finish = piece
                    break
                case _:
                    message = f"The engine yielded {_describe(piece)}."
                    raise EngineError("engine_protocol", message)
        else:
            finish = Finish()
            if is_empty:
                raise EngineError("empty_output", "The engine ended without writing anything.")
        if call is not None:  # neither a Finish nor the generator's end says that the call is whole
            call.cut()
    return finish


def _describe(piece: object) -> str:
    if isinstance(piece, ToolCallArguments | ToolCallEnd):
        return f"{type(piece).__name__} without ToolCallStart"
    return f"a {type(piece).__name__}"
