"""An engine that relays the streams of an OpenAI-compatible server: vLLM, llama.cpp, Ollama, OpenAI.

Easy to get wrong:

* A silent server has not failed. The stream's deadlines limit how long a model may think, so only connecting has a
  timeout here.
* A request is sent again only while no status came. For a client that cannot repeat it, it is also sent again after
  429 and 503. A later retry could repeat text.
* Some servers refuse fields that they do not know. After such an answer the request is sent again without the fields
  that this engine adds.

The codes a stream can fail with, and whether a new stream may succeed:

============================ ====================================================================================
`upstream_unreachable`       no connection (yes)
`upstream_timeout`           connecting took too long (yes)
`upstream_refused`           status 429, 503 or 529, or the server reported one inside its stream (yes)
`upstream_unauthorized`      status 401 or 403: the server does not accept this server's key (no)
`upstream_rejected`          another status below 500, such as for a prompt that is too long (no)
`upstream_error`             status 5xx or 408, or the server reported a failure inside its stream (yes). A report that
                             blames the request is `upstream_rejected`
`upstream_ended_early`       the connection or the body ended before the model did (yes)
`upstream_invalid_response`  the response is not a stream of chat completion chunks (no)
============================ ====================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, final

import msgspec

from crucible_trio.engine import Capabilities, EngineInfo, Finish, PassedPath
from crucible_trio.engines.upstream.added_fields import AddedFields, named_in
from crucible_trio.engines.upstream.continuing import ContinuedAnswer
from crucible_trio.engines.upstream.discovery import check_key, list_models, parse_base_url
from crucible_trio.engines.upstream.passed_fields import PassedFields
from crucible_trio.engines.upstream.request_body import (
    LimitField,
    ReasoningField,
    RequestBody,
    upstream_capabilities,
)
from crucible_trio.engines.upstream.response import read_error_response, read_json, relay_completion
from crucible_trio.engines.upstream.retries import RetrySchedule
from crucible_trio.engines.upstream.sending import RequestSender, wait_or_raise
from crucible_trio.engines.upstream.skipped import SkippedFields
from crucible_trio.engines.upstream.think import THINK_TAGS, ThinkSplitter, check_tags
from crucible_trio.engines.watching import discover_at_start
from crucible_trio.errors import EngineError
from crucible_trio.http import HttpClient, HttpResponse, Url, open_http_client
from crucible_trio.output import Output
from crucible_trio.records import Mode
from crucible_trio.request import Request
from crucible_trio.settings.upstreams import Prefill

logger = logging.getLogger(__name__)

# Makes servers with Jinja templates (vLLM, llama.cpp, SGLang) think or not. Other servers need other fields.
THINKING: Final[Mapping[Mode, Mapping[str, object]]] = {
    "standard": {"chat_template_kwargs": {"enable_thinking": False}},
    "deep": {"chat_template_kwargs": {"enable_thinking": True}},
}


@asynccontextmanager
async def open_upstream(
    base_url: str,
    *,
    name: str = "upstream",
    model: str | None = None,
    models: Sequence[str] = (),
    must_be_up: bool = True,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
    capabilities: Capabilities | None = None,
    thinking: Mapping[Mode, Mapping[str, object]] = THINKING,
    extra_body: Mapping[str, object] | None = None,
    limit_field: LimitField = "max_tokens",
    think_tags: Mapping[str, str] = THINK_TAGS,
    starts_in_trace: Collection[Mode] = (),
    reasoning_field: ReasoningField | None = None,
    prefill: Prefill | None = None,
) -> AsyncIterator[UpstreamEngine]:
    """Open an engine that relays a server's streams. Its connections close with the context.

    Args:
        base_url: The URL without `/chat/completions`, such as `http://127.0.0.1:8080/v1`.
        name: The engine's name, for metrics and the list of models.
        model: The only model, in place of `models`.
        models: Names of models on the server, which is then not asked and need not be up yet. None given: ask the
            server for its models. The first one is the default.
        must_be_up: Without names of models, ask for them now. False: the engine has none until `discover` is called.
        key: Sent as `Authorization: Bearer`.
        headers: Further headers of every request.
        capabilities: Those of the models. None: all that this engine can pass on, and the server judges.
        thinking: Per mode, fields for the request's body that make the server think, or not. The default fields are
            left out for a model for which the server refuses them.
        extra_body: Fields for every request's body. `thinking` wins over them, and they win over the request's fields.
        limit_field: The field for `max_output_tokens`. OpenAI's reasoning models need `max_completion_tokens`.
        think_tags: The tags around a trace inside the content, from opening to closing tag. Empty: there are none.
        starts_in_trace: Modes in which the content begins inside the trace, without an opening tag.
        reasoning_field: The field of a message in which the reasoning of earlier turns is sent back. None: it is not
            sent, and a request that has any is refused.
        prefill: How the server is asked to go on with an answer whose connection was lost. None: the stream fails.

    Raises:
        ConfigError: The URL, the key or a tag is invalid, or the server does not list a model.
    """
    url = parse_base_url(base_url)
    check_tags(think_tags)
    # A server that compresses holds tokens back.
    all_headers = {**(headers or {}), "Accept": "text/event-stream", "Accept-Encoding": "identity"}
    if key is not None:
        all_headers["Authorization"] = f"Bearer {check_key(key)}"
    async with open_http_client(url, headers=all_headers) as client:
        can_carry = upstream_capabilities(reasoning_field)
        engine = UpstreamEngine(
            client,
            url,
            EngineInfo(
                name=name,
                models=tuple(models) if model is None else (model,),
                capabilities=can_carry & (capabilities or can_carry),
                waits_for_upstream=True,
            ),
            thinking=thinking,
            extra_body=extra_body or {},
            limit_field=limit_field,
            think_tags=think_tags,
            starts_in_trace=starts_in_trace,
            reasoning_field=reasoning_field,
            prefill=prefill,
            key=key,
        )
        if must_be_up and not engine.info.models:
            await discover_at_start(engine)
        if engine.info.models:
            logger.info(
                "engine %s: upstream server %s, default model %s", name, url.without_query(), engine.info.models[0]
            )
        yield engine


@final
class UpstreamEngine:
    """Relays a server's streams. Made by `open_upstream`.

    Attributes:
        info: The engine's models and capabilities, and whether the server responds.
        skipped_fields: Values and events of the server's streams that were skipped, since the start.
    """

    def __init__(
        self,
        client: HttpClient,
        base_url: Url,
        info: EngineInfo,
        *,
        thinking: Mapping[Mode, Mapping[str, object]],
        extra_body: Mapping[str, object],
        limit_field: LimitField,
        think_tags: Mapping[str, str],
        starts_in_trace: Collection[Mode],
        reasoning_field: ReasoningField | None,
        prefill: Prefill | None,
        key: str | None,
    ) -> None:
        self.info = info
        self.skipped_fields = 0
        self._client = client
        self._sender = RequestSender(client, base_url, self)
        self._extra_body = extra_body
        self._models_url = base_url.join("models")
        self._asks_for_models = not info.models
        self._request_body = RequestBody(
            thinking=thinking, extra_body=extra_body, limit_field=limit_field, reasoning_field=reasoning_field
        )
        self._think_tags = think_tags
        self._starts_in_trace = frozenset(starts_in_trace)
        self._prefill = prefill
        self._key = key
        modes = {name for fields in thinking.values() for name in fields}
        defaults = modes if thinking == THINKING else set()
        # Fields that the operator has chosen are never left out.
        self._configured = (modes - defaults) | extra_body.keys()
        self._added = AddedFields((defaults | {"stream_options"}) - self._configured)

    async def discover(self) -> None:
        """Ask the server for its models, and declare in `info` what it says (`DiscoversModels`).

        If the models were named when the engine was opened, this only finds out whether the server responds.

        Raises:
            EngineError: The server does not respond, or has no list of models. The engine keeps the models that it has.
        """
        try:
            models = await list_models(self._client, self._models_url)
        except EngineError as error:
            if self._asks_for_models or error.status is None or error.status >= 500:
                self.info = replace(self.info, is_up=False)
                raise
            models = ()
        self.info = replace(self.info, is_up=True, models=models if self._asks_for_models else self.info.models)

    def saw(self, *, is_up: bool) -> None:
        """Note whether the server responds (`ServerWatcher`)."""
        if self.info.is_up is not is_up:
            self.info = replace(self.info, is_up=is_up)

    async def generate(self, request: Request, output: Output) -> Finish:
        """Send the request to the server and relay its stream.

        Cancellation: closes the connection to the server, which frees its slot.

        Raises:
            EngineError: With one of this module's codes.
        """
        try:
            return await self._generate(request, output)
        except EngineError as error:
            self._without_key(error)
            raise

    async def _generate(self, request: Request, output: Output) -> Finish:
        passed = PassedFields()
        if self._prefill is None:
            return await self._complete(request, output, passed)
        answer = ContinuedAnswer(request, self._prefill)
        lost: EngineError | None = None
        while True:
            try:
                return answer.finish(await self._complete(request, output, passed, answer))
            except EngineError as failure:
                if lost is not None and not answer.has_reply:  # the server refused to go on, or could not be reached
                    raise lost from failure
                following = answer.next_request()
                if following is None:
                    raise
                request, lost = following, failure
            logger.info("the answer goes on in another request: continuation %d", answer.continuations)

    async def _complete(
        self, request: Request, output: Output, passed: PassedFields, answer: ContinuedAnswer | None = None
    ) -> Finish:
        """Send one request, again where that is safe, and relay the server's stream."""
        model = request.model or self.info.models[0]
        left_out = self._added.refused(model)
        schedule = RetrySchedule(client_retries=output.client_retries, has_fallback=output.has_fallback)
        while True:
            given = self._request_body.fields(request, model)
            fields = {name: value for name, value in given.items() if name not in left_out}
            if answer is not None:
                answer.add_fields(fields)
            response = await self._sender.send("chat/completions", fields, schedule)
            async with response:
                if response.is_success:
                    output.accepted()
                    self._remember(model, left_out)
                    return await self._relay(response, request, output, passed, answer)
                failure, content = await read_error_response(response)
            if refused := self._added.refused_by(response.status, content, fields):
                left_out |= refused
                names = ", ".join(sorted(refused))
                logger.warning("status %d: sending the request again without %s", response.status, names)
                continue
            if response.status in {400, 422} and (named := named_in(content, self._configured)):
                names = ", ".join(sorted(named))
                logger.warning("the upstream server's error names fields of the settings: %s", names)
            # Waiting for an overloaded server is waiting for a slot at a model. Waiting for an unreachable one is not.
            async with output.queued():
                await wait_or_raise(schedule.after_error_response(failure), failure)

    async def pass_on(self, path: PassedPath, fields: Mapping[str, object], *, has_fallback: bool = False) -> bytes:
        """Send a request of another API and return the whole answer (`PassesOn`).

        Raises:
            EngineError: With one of this module's codes.
        """
        all_fields = {**fields, **self._extra_body, "model": fields["model"]}
        response = await self._sender.send(
            path, all_fields, RetrySchedule(client_retries=True, has_fallback=has_fallback)
        )
        async with response:
            if response.is_success:
                return await read_json(response)
            failure, _ = await read_error_response(response)
        raise self._without_key(failure)

    async def _relay(
        self,
        response: HttpResponse,
        request: Request,
        output: Output,
        passed: PassedFields,
        answer: ContinuedAnswer | None,
    ) -> Finish:
        starts_inside = request.mode in self._starts_in_trace
        if answer is not None:
            answer.has_reply = True
            starts_inside = starts_inside and not answer.continuations
        splitter = ThinkSplitter(self._think_tags, starts_inside=starts_inside)
        skipped = SkippedFields()
        try:
            finish = await relay_completion(
                response,
                output,
                splitter,
                skipped,
                answer,
                keeps_logprobs=request.parameters.logprobs,
                passed=passed,
            )
        finally:
            self.skipped_fields += skipped.total
        # The server may also name the text of a stop token.
        return finish if finish.stop_string in (request.sampling.stop or ()) else replace(finish, stop_string=None)

    def _without_key(self, failure: EngineError) -> EngineError:
        """Leave the upstream's words out if they quote this server's key."""
        words = () if failure.upstream is None else msgspec.structs.astuple(failure.upstream)
        if self._key is not None and any(self._key in word for word in words if word is not None):
            failure.upstream = None
        return failure

    def _remember(self, model: str, left_out: frozenset[str]) -> None:
        if self._added.remember(model, left_out):
            names = ", ".join(sorted(left_out))
            logger.warning("requests for model %s are sent without %s from now on", ascii(model), names)
