"""A model in this process, run by xllamacpp (llama.cpp in one wheel): no second process, no compiler, no GPU.

A standard request is one turn of the model (turns.py). A turn is a series of slices (slices.py).

Mode `deep` is two turns in one conversation: the model writes down its steps, then answers with the steps in its
prompt. That is a prompted draft, not trained reasoning. The default model is tiny and often wrong.
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
from crucible_trio.engines.local.chunks import ModelServer
from crucible_trio.engines.local.slices import Slice, SlotClaim
from crucible_trio.engines.local.turns import AnswerWriter, OpenSlice, SamplingOptions, TraceWriter, take_turn
from crucible_trio.engines.local.weights import Weights, find_weights
from crucible_trio.engines.progress import DownloadProgress
from crucible_trio.errors import ConfigError
from crucible_trio.output import Output
from crucible_trio.records import Usage
from crucible_trio.request import Message, Request

logger = logging.getLogger(__name__)

# Tokens of a prompt that the model reads in one batch. Between two batches it notices a cancelled stream and serves the
# other streams. Half this size would cost a quarter of the speed.
_BATCH_TOKENS = 64

# Maximum of a trace. The small model's traces end before 150 tokens or turn into repetition, and the user waits for the
# answer.
_TRACE_TOKENS = 192

# A closing engine waits this long for its threads. Each ends after its batch. One that is still busy then is stuck.
_CLOSE_SECONDS = 10.0

_ASK_FOR_STEPS = "First write your reasoning as short numbered steps. Do not write the final answer yet."
_ASK_FOR_ANSWER = "Using your steps above, now answer the question in two or three plain sentences:"
_GO_ON = "Go on."  # for a conversation that does not end with a question

_NO_RUNTIME = (
    "the local model needs xllamacpp, which cannot be loaded ({reason}):"
    " run `pip install xllamacpp`, or use `--engine upstream --base-url URL`, or `--engine replay`"
)


@asynccontextmanager
async def open_local(
    model: str | Path | None = None,
    *,
    slots: int = 4,
    threads: int = 0,
    context_tokens: int = 2048,
    progress: DownloadProgress | None = None,
    cache_folder: Path | None = None,
) -> AsyncIterator[LocalEngine]:
    """Load a model. Its memory and threads are freed with the context.

    Args:
        model: Path of a GGUF file. None: the default model, which is downloaded once.
        slots: Streams that the model serves at the same time. Further streams wait for a slot.
        threads: Compute threads. 0: one less than the number of cores, at least one. If another program keeps the last
            core busy, all threads wait for that core at every token.
        context_tokens: Tokens of prompt and output together, per slot.
        progress: Called now and then while the default model is downloaded.
        cache_folder: Where the downloaded model is kept. None: the user's cache folder.

    Raises:
        ConfigError: The runtime or the model is missing or unusable. The message says what to do.

    Cancellation: ends a download, but waits for the model to load. Leaving the context stops the threads in the model
    and waits for them.
    """
    if find_spec("xllamacpp") is None:  # checked before the model is downloaded
        raise ConfigError(_NO_RUNTIME.format(reason="it is not installed"), "engine")
    weights = await find_weights(model, cache_folder=cache_folder, progress=progress)
    threads = threads or max(1, (os.cpu_count() or 1) - 1)
    began = trio.current_time()
    # A list, so that no frame of this generator keeps a reference to the model.
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


def _load(weights: Weights, slots: int, threads: int, context_tokens: int) -> ModelServer:
    # Threads that wait for each other must sleep. By default they spin, and then another busy program costs 95 % of the
    # speed.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        runtime = importlib.import_module("xllamacpp")
    except ImportError as error:
        raise ConfigError(_NO_RUNTIME.format(reason=error), "engine") from error
    settings = runtime.CommonParams()
    settings.model.path = str(weights.path)
    settings.n_parallel = slots
    settings.n_ctx = context_tokens * slots
    settings.n_batch = _BATCH_TOKENS
    settings.n_ubatch = _BATCH_TOKENS
    settings.cpuparams.n_threads = threads
    settings.cpuparams_batch.n_threads = threads
    settings.fit_params = False  # it would shrink the context
    settings.cache_ram_mib = 0  # the default keeps up to 8 GiB of prompts
    settings.cache_idle_slots = False
    # A slot is reused for a conversation that continues. Two conversations that share only the default system message
    # must not count as the same one.
    settings.slot_prompt_similarity = 0.5
    settings.enable_reasoning = 0
    settings.verbosity = 0
    # xllamacpp always opens a port. With a random key it rejects all requests there. Calls in the process need no key.
    settings.hostnames = ["127.0.0.1"]
    settings.port = 0
    settings.api_keys = [secrets.token_urlsafe(32)]
    settings.ui = False
    settings.endpoint_slots = False
    try:
        server: ModelServer = runtime.Server(settings)
    except RuntimeError as error:  # the same error for every reason
        message = (
            f"the model file {weights.path} cannot be loaded: it is not a valid model, or there is too little memory"
            f" for {slots} slots of {context_tokens} tokens"
        )
        raise ConfigError(message, "model", "local_slots", "local_context_tokens") from error
    return server


@final
class LocalEngine:
    """A loaded model. Made by `open_local`.

    `stop` ends the answer, never the trace. A fixed seed gives the same text again, unless rounding differs: the last
    bits of the arithmetic depend on the other streams that the model serves at the same time.

    Attributes:
        info: The engine's model and the sampling fields it honours.
        abandoned_threads: Number of threads, since the start, that were still busy when their cancelled stream ended.
            Each ends after its batch and keeps its slot until then.
    """

    def __init__(self, server: ModelServer, model: str, *, slots: int, context_tokens: int) -> None:
        sampling = frozenset({"temperature", "top_p", "seed", "stop"})
        self.info = EngineInfo(name="local", models=(model,), capabilities=Capabilities(sampling=sampling))
        self.abandoned_threads = 0
        self._server: ModelServer | None = server
        self._slots = trio.CapacityLimiter(slots)
        self._context_tokens = context_tokens
        self._slices: set[Slice] = set()

    async def generate(self, request: Request, output: Output) -> Finish:
        """Let the model answer. See `Engine.generate`.

        A prompt may fill half of the context, in mode `deep` a quarter, because the question is asked twice. A trace
        ends at 192 tokens, at a quarter of the context or at half of `max_output_tokens`, whichever is least. Without
        `max_output_tokens` the output may fill half of the context. A full context ends the answer with `length`.

        Raises:
            EngineError: `prompt_too_long`, `unsupported_conversation` or `model_failed`.
            trio.ClosedResourceError: The model has been closed, or the stream has ended.

        Cancellation: the model stops at its next token or batch, which releases its slot.
        """
        claim = SlotClaim(self._slots, output)
        try:
            if request.mode == "deep":
                return await self._deep(request, output, claim)
            return await self._standard(request, output, claim)
        finally:
            claim.release()
            self.abandoned_threads += claim.threads_abandoned

    async def _standard(self, request: Request, output: Output, claim: SlotClaim) -> Finish:
        writer = AnswerWriter(output, request.sampling.stop or ())
        turn = await take_turn(
            self._slice_opener(claim),
            request.messages,
            writer,
            SamplingOptions(request.sampling),
            max_tokens=self._max_tokens(request),
            max_prompt_tokens=self._context_tokens // 2,
        )
        return Finish(turn.reason, Usage(turn.prompt_tokens, turn.tokens, 0), writer.stop_string)

    async def _deep(self, request: Request, output: Output, claim: SlotClaim) -> Finish:
        open_slice, options = self._slice_opener(claim), SamplingOptions(request.sampling)
        quarter = self._context_tokens // 4
        max_tokens = self._max_tokens(request)
        *before, last = request.messages
        if last.role != "user":
            before, last = [*before, last], Message("user", _GO_ON)
        asked = [*before, Message("user", f"{last.text}\n{_ASK_FOR_STEPS}")]
        trace = await take_turn(
            open_slice,
            asked,
            TraceWriter(output),
            options,
            max_tokens=min(_TRACE_TOKENS, quarter, max(1, max_tokens // 2)),
            max_prompt_tokens=quarter,
        )
        if trace.tokens >= max_tokens:
            return Finish("length", Usage(trace.prompt_tokens, trace.tokens, trace.tokens))
        # The answer follows also when the trace was cut by its limit.
        steps = [Message("assistant", trace.text)] if trace.text.strip() else []
        writer = AnswerWriter(output, request.sampling.stop or ())
        answer = await take_turn(
            open_slice,
            [*asked, *steps, Message("user", f"{_ASK_FOR_ANSWER} {last.text}")],
            writer,
            options,
            max_tokens=max_tokens - trace.tokens,
            max_prompt_tokens=None,
        )
        usage = Usage(trace.prompt_tokens, trace.tokens + answer.tokens, trace.tokens)
        return Finish(answer.reason, usage, writer.stop_string)

    def _max_tokens(self, request: Request) -> int:
        return request.max_output_tokens or self._context_tokens // 2

    def _slice_opener(self, claim: SlotClaim) -> OpenSlice:
        def open_slice(request: dict[str, object], max_prompt_tokens: int | None, /) -> Slice:
            if self._server is None:
                raise trio.ClosedResourceError
            slice_ = Slice(self._server, request, claim, max_prompt_tokens=max_prompt_tokens)
            self._slices = {slice_, *(other for other in self._slices if not other.ended.is_set())}
            return slice_

        return open_slice

    async def aclose(self) -> None:
        """Stop the running slices and free the model.

        Cancellation: shielded. It waits at most 10 s for running batches, and for the model's memory to be freed.
        """
        servers, self._server = [self._server], None
        slices, self._slices = self._slices, set()
        for slice_ in slices:
            slice_.stop()
        with trio.move_on_after(_CLOSE_SECONDS, shield=True) as scope:
            for slice_ in slices:
                await slice_.ended.wait()
        slices.clear()
        if scope.cancelled_caught:
            logger.warning("a model thread does not stop: the model's memory stays in use until the thread ends")
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(servers.clear)  # the last reference: this ends the model's threads
