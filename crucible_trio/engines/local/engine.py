"""A model in this process, by xllamacpp (llama.cpp in one wheel): no second process, no compiler, no GPU.

A standard request is one turn of the model (turns.py), made of slices (slices.py).

Mode `deep` is two turns in one conversation: the model writes down its steps, then answers with them before its eyes.
That is a prompted draft, not trained reasoning, and the default model is tiny and often wrong.
"""

from __future__ import annotations

import importlib
import logging
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import final

import trio

from crucible_trio.engine import Capabilities, EngineInfo, Finish
from crucible_trio.engines import Progress
from crucible_trio.engines.local.slices import Place, Server, Slice
from crucible_trio.engines.local.turns import Answer, OpenSlice, Style, Trace, take_turn
from crucible_trio.engines.local.weights import Weights, find_weights
from crucible_trio.errors import ConfigError
from crucible_trio.output import Output
from crucible_trio.records import Usage
from crucible_trio.request import Message, Request

logger = logging.getLogger(__name__)

# Tokens of a prompt that are read at one go. In between a cancelled stream is noticed and others get their tokens; half
# of it would cost a quarter of the speed.
_BATCH_TOKENS = 64

# Of a trace, at most. The small model's own traces end before 150 tokens or run on into repetition, and somebody waits
# for the answer.
_TRACE_TOKENS = 192

# A thread that a closed engine waits for is at the end of a batch; one that is still busy then is stuck.
_CLOSE_SECONDS = 10.0

_ASK_FOR_STEPS = "First write your reasoning as short numbered steps. Do not write the final answer yet."
_ASK_FOR_ANSWER = "Using your steps above, now answer the question in two or three plain sentences:"
_GO_ON = "Go on."  # to a conversation that does not end with a question

_NO_RUNTIME = (
    "the local model needs xllamacpp, which cannot be loaded ({reason}):"
    " run `pip install 'crucible_trio[local]'`, or use `--engine upstream --base-url URL`, or `--engine replay`"
)


@asynccontextmanager
async def open_local(
    model: str | Path | None = None,
    *,
    slots: int = 4,
    threads: int = 0,
    context_tokens: int = 2048,
    progress: Progress | None = None,
    cache_folder: Path | None = None,
) -> AsyncIterator[LocalEngine]:
    """Load a model; memory and threads are freed with the context.

    Args:
        model: Path of a GGUF file; None is the default model, which is fetched once.
        slots: Streams the model works on at once; others wait their turn.
        threads: To compute with; 0: one less than there are cores, at least one. A busy neighbour on the last core
            makes all the others wait for it at every token.
        context_tokens: Prompt and output together, per slot.
        progress: Called with bytes done and bytes in all while the default model is fetched.
        cache_folder: Where the fetched model is kept; default: the user's cache folder.

    Raises:
        ConfigError: The runtime or the model is missing or cannot be used; the message says what to do.

    Cancellation: ends a download; loading is waited for. On leaving, threads in the model are stopped and waited for.
    """
    if find_spec("xllamacpp") is None:  # before the model is fetched for nothing
        raise ConfigError(_NO_RUNTIME.format(reason="it is not installed"))
    weights = await find_weights(model, cache_folder=cache_folder, progress=progress)
    threads = threads or max(1, (os.cpu_count() or 1) - 1)
    began = trio.current_time()
    # In a list, so that no frame of this generator holds the model when it is to be freed.
    loaded = [await trio.to_thread.run_sync(_load, weights, slots, threads, context_tokens)]
    logger.info(
        "model %s: loaded in %.1f s, %d slots, %d threads",
        weights.model,
        trio.current_time() - began,
        slots,
        threads,
    )
    engine = LocalEngine(loaded.pop(), weights.model, slots=slots, context_tokens=context_tokens)
    try:
        yield engine
    finally:
        await engine.aclose()


def _load(weights: Weights, slots: int, threads: int, context_tokens: int) -> Server:
    # Threads that wait for each other must sleep: with the default, spinning, a busy neighbour costs 95 % of the speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        runtime = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise ConfigError(_NO_RUNTIME.format(reason=error)) from error
    settings = runtime.CommonParams()
    settings.model.path = str(weights.path)
    settings.n_parallel = slots
    settings.n_ctx = context_tokens * slots
    settings.n_batch = _BATCH_TOKENS
    settings.n_ubatch = _BATCH_TOKENS
    settings.cpuparams.n_threads = threads
    settings.cpuparams_batch.n_threads = threads
    settings.fit_params = False  # it would make the context smaller than what was asked for
    settings.cache_ram_mib = 0  # the default keeps up to 8 GiB of prompts
    settings.cache_idle_slots = False
    # A default system message alone does not make two conversations alike; a slot is reused for a continued one.
    settings.slot_prompt_similarity = 0.5
    settings.enable_reasoning = 0
    settings.verbosity = 0
    # It always opens a port. With a key nobody knows it answers nothing there, and calls in the process need none.
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    settings.api_keys = [secrets.token_urlsafe(32)]
    settings.ui = False
    settings.endpoint_slots = False
    try:
        server: Server = runtime.Server(settings)
    except RuntimeError as error:  # the same one for every reason
        message = f"the model file {weights.path} cannot be loaded: it is no usable model, or memory is short"
        raise ConfigError(message) from error
    return server


@final
class LocalEngine:
    """A loaded model; made by `open_local`.

    `stop` ends the answer, never the trace. A fixed seed gives the same text again, but for the last bits of the
    arithmetic, which depend on what else the model computes at the same time.

    Attributes:
        info: What it can do.
        abandoned_threads: Threads that a cancelled stream could not wait for, counted since the start. Each ends by
            itself after its batch, and keeps its slot until then.
    """

    def __init__(self, server: Server, model: str, *, slots: int, context_tokens: int) -> None:
        sampling = frozenset({"temperature", "top_p", "seed", "stop"})
        self.info = EngineInfo(name="local", models=(model,), capabilities=Capabilities(sampling=sampling))
        self.abandoned_threads = 0
        self._server: Server | None = server
        self._slots = trio.CapacityLimiter(slots)
        self._context_tokens = context_tokens
        self._slices: set[Slice] = set()

    async def generate(self, request: Request, output: Output) -> Finish:
        """Let the model answer; see `Engine.generate`.

        A prompt fills half of the context at most; in mode `deep` a quarter, because the question is asked twice. A
        trace has at most 192 tokens, a quarter of the context and half of `max_output_tokens`. Without that the output
        fills half of the context at most. A full context ends the answer with `length`.

        Raises:
            EngineError: `prompt_too_long`, `model_refused` or `model_failed`.
            trio.ClosedResourceError: The model has been closed, or the stream has ended.

        Cancellation: the model stops at its next token or batch, and its slot is free then.
        """
        place = Place(self._slots, output)
        try:
            if request.mode == "deep":
                return await self._deep(request, output, place)
            return await self._standard(request, output, place)
        finally:
            place.leave()
            self.abandoned_threads += place.threads_abandoned

    async def _standard(self, request: Request, output: Output, place: Place) -> Finish:
        turn = await take_turn(
            self._slices_in(place),
            request.messages,
            Answer(output, request.sampling.stop or ()),
            Style(request.sampling),
            max_tokens=self._max_tokens(request),
            max_prompt_tokens=self._context_tokens // 2,
        )
        return Finish(turn.reason, Usage(turn.prompt_tokens, turn.tokens, 0))

    async def _deep(self, request: Request, output: Output, place: Place) -> Finish:
        slices, style = self._slices_in(place), Style(request.sampling)
        quarter = self._context_tokens // 4
        max_tokens = self._max_tokens(request)
        *before, last = request.messages
        if last.role != "user":
            before, last = [*before, last], Message("user", _GO_ON)
        asked = [*before, Message("user", f"{last.text}\n{_ASK_FOR_STEPS}")]
        trace = await take_turn(
            slices,
            asked,
            Trace(output),
            style,
            max_tokens=min(_TRACE_TOKENS, quarter, max(1, max_tokens // 2)),
            max_prompt_tokens=quarter,
        )
        if trace.tokens >= max_tokens:
            return Finish("length", Usage(trace.prompt_tokens, trace.tokens, trace.tokens))
        # A trace cut by its limit is a trace; the answer comes all the same.
        steps = [Message("assistant", trace.text)] if trace.text.strip() else []
        answer = await take_turn(
            slices,
            [*asked, *steps, Message("user", f"{_ASK_FOR_ANSWER} {last.text}")],
            Answer(output, request.sampling.stop or ()),
            style,
            max_tokens=max_tokens - trace.tokens,
            max_prompt_tokens=None,
        )
        return Finish(answer.reason, Usage(trace.prompt_tokens, trace.tokens + answer.tokens, trace.tokens))

    def _max_tokens(self, request: Request) -> int:
        return request.max_output_tokens or self._context_tokens // 2

    def _slices_in(self, place: Place) -> OpenSlice:
        def open_slice(request: dict[str, object], max_prompt_tokens: int | None) -> Slice:
            if self._server is None:
                raise trio.ClosedResourceError
            slice_ = Slice(self._server, request, place, max_prompt_tokens=max_prompt_tokens)
            self._slices = {slice_, *(other for other in self._slices if not other.left.is_set())}
            return slice_

        return open_slice

    async def aclose(self) -> None:
        """Stop what runs and free the model. Cancellation: it is shielded, and takes as long as a batch or a free."""
        servers, self._server = [self._server], None
        slices, self._slices = self._slices, set()
        for slice_ in slices:
            slice_.stop()
        with trio.move_on_after(_CLOSE_SECONDS, shield=True) as scope:
            for slice_ in slices:
                await slice_.left.wait()
        slices.clear()
        if scope.cancelled_caught:
            logger.warning("a thread in the model does not end; the model's memory is freed when it does")
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(servers.clear)  # the last reference: ends the model's own threads
