"""The settings of the engines that come with this package."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal, TypeAlias, final

import msgspec

from crucible_trio.config import Secret, Text
from crucible_trio.errors import ConfigError
from crucible_trio.settings.upstreams import (
    OPENAI_ONLY,
    LimitField,
    ModeName,
    Prefill,
    ReasoningInput,
    UpstreamKind,
    UpstreamSettings,
    Url,
    check_prefill,
)
from crucible_trio.settings.values import check_json, quote

# llama.cpp counts slots, threads and tokens in 32 bits, and multiplies the first and the last.
_Slots: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_Threads: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1024)]
_ContextTokens: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1024 * 1024)]

# The name is a label of metrics and a word of log lines.
_UPSTREAM_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")

# The settings of one upstream server without a table, and their names in a table.
_IN_A_TABLE: Final = {
    "upstream_base_url": "base_url",
    "upstream_kind": "kind",
    "upstream_key": "key",
    "upstream_thinking": "thinking",
    "upstream_extra_body": "extra_body",
    "upstream_limit_field": "limit_field",
    "upstream_think_tags": "think_tags",
    "upstream_starts_in_trace": "starts_in_trace",
    "upstream_reasoning_input": "reasoning_input",
    "upstream_prefill": "prefill",
}


@final
class EngineSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The engine to run, and its settings."""

    # The engine.
    engine: Literal["local", "upstream", "replay"] = "local"
    """Where the output comes from."""
    model: Text | None = None
    """`local`: path of a GGUF file. Default: the small model, which is downloaded once. `upstream`: the model's name
    there. Default: the first one that the server lists."""
    local_slots: _Slots = 4
    """Streams that the local model works on at the same time. Other streams stay open and wait for a slot."""
    local_threads: _Threads = 0
    """Threads that the local model computes with. 0 means one fewer than there are cores."""
    local_context_tokens: _ContextTokens = 2048
    """Context size of each slot of the local model, for prompt and answer together."""
    upstream_base_url: Url | None = None
    """Base URL of the upstream server, such as `http://127.0.0.1:8080/v1`."""
    upstream_kind: UpstreamKind = "openai"
    """`openai`: an OpenAI-compatible server. `crucible`: another crucible_trio, read over its native API, so that a cut
    between the two loses nothing."""
    upstream_key: Secret | None = None
    """Sent to the upstream server as `Authorization: Bearer`."""
    upstream_thinking: dict[ModeName, dict[str, Any]] | None = None
    """Per mode, the fields of the upstream request body that turn thinking on or off. Default:
    `chat_template_kwargs.enable_thinking`, which vLLM and llama.cpp understand. Where the server refuses the default
    field, requests are sent without it. In the environment, JSON."""
    upstream_extra_body: dict[str, Any] = {}
    """Fields added to every request to the upstream server. They win over the fields of the request. In the
    environment, JSON."""
    upstream_limit_field: LimitField = "max_tokens"
    """The upstream server's name for `max_output_tokens`. OpenAI's own reasoning models need
    `max_completion_tokens`."""
    upstream_think_tags: dict[Text, Text] = msgspec.field(default_factory=lambda: {"<think>": "</think>"})
    """The tags around a trace inside the upstream server's text, from opening to closing tag. An opening tag counts
    only at the beginning of the text. Empty: the text is never searched for a trace. In the environment, JSON."""
    upstream_starts_in_trace: tuple[ModeName, ...] = ()
    """Modes in which the upstream server's text begins inside the trace, without an opening tag, because the chat
    template has written it. DeepSeek's and some of Qwen's templates do this: set it to `deep`. In the environment,
    comma-separated."""
    upstream_reasoning_input: ReasoningInput = "none"
    """The field of an assistant message in which the reasoning of earlier turns goes back to the upstream server.
    Models that think between tool calls need it. llama.cpp and DeepSeek read `reasoning_content`, vLLM `reasoning`.
    `none`: it is not sent."""
    upstream_prefill: Prefill | None = None
    """If set, an answer whose connection was lost goes on in a second request, which ends with the answer so far. A
    table of `body` and `message`, the fields with which the server goes on instead of beginning a new answer, and
    `echoes`. Default: the stream fails. In the environment, JSON."""
    upstreams: dict[Text, UpstreamSettings] = {}
    """Several upstream servers, in tables `[upstreams.NAME]`. They take the place of the settings `upstream_...` and
    `model`. In the environment, JSON."""
    replay_speed: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """How much faster than recorded the replay runs. `inf` never waits."""

    def __post_init__(self) -> None:
        """Check what concerns several settings, or what a type cannot say."""
        if self.engine == "upstream" and self.upstream_base_url is None and not self.upstreams:
            message = (
                "engine 'upstream' needs the URL of a server: set upstream_base_url (--base-url), "
                "or add a table [upstreams.NAME]"
            )
            raise ConfigError(message, "engine")
        if self.upstream_kind == "crucible":
            for name, field in _IN_A_TABLE.items():
                if field in OPENAI_ONLY and getattr(self, name) != _DEFAULTS[name]:
                    message = f"{name} is for upstream_kind 'openai': set it on the server behind upstream_base_url"
                    raise ConfigError(message, name)
        check_json("upstream_thinking", self.upstream_thinking)
        check_json("upstream_extra_body", self.upstream_extra_body)
        check_prefill("upstream_prefill", self.upstream_prefill)
        for name in self.upstreams:
            if not _UPSTREAM_NAME.fullmatch(name):
                message = (
                    f"upstreams has the table {quote(name)}: "
                    "a name has 1 to 64 letters, digits, dots, hyphens and underscores"
                )
                raise ConfigError(message, "upstreams")
        if self.upstreams:
            for name, field in _IN_A_TABLE.items():
                if getattr(self, name) != _DEFAULTS[name]:
                    where = "key_variable" if field == "key" else field
                    message = f"{name} cannot be set together with tables of upstreams: set {where} in their tables"
                    raise ConfigError(message, name, "upstreams")
            if self.engine == "upstream" and self.model is not None:
                message = "model cannot be set together with tables of upstreams: set models in their tables"
                raise ConfigError(message, "model", "upstreams")

    @property
    def all_upstreams(self) -> dict[str, UpstreamSettings]:
        """The upstream servers by name, in order. The settings `upstream_...` are one with the name `upstream`."""
        if self.upstreams or self.upstream_base_url is None:
            return self.upstreams
        values = {field: getattr(self, name) for name, field in _IN_A_TABLE.items()}
        models = None if self.model is None else (self.model,)
        return {"upstream": UpstreamSettings(**values, models=models)}


_DEFAULTS: Final = msgspec.structs.asdict(EngineSettings())
