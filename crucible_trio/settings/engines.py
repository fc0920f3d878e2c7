"""The settings of the engines that come with this package."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeAlias, final

import msgspec

from crucible_trio.config import Secret, Text
from crucible_trio.errors import ConfigError

# llama.cpp counts slots, threads and tokens in 32 bits, and multiplies the first and the last.
_Slots: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1024)]
_Threads: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=1024)]
_ContextTokens: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1024 * 1024)]

_Url: TypeAlias = Secret  # it may hold a password

# Settings that say how to translate between this server's requests and OpenAI's.
_OPENAI_ONLY: Final = (
    "upstream_thinking",
    "upstream_extra_body",
    "upstream_limit_field",
    "upstream_think_tags",
    "upstream_starts_in_trace",
)


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
    upstream_base_url: _Url | None = None
    """Base URL of the upstream server, such as `http://127.0.0.1:8080/v1`."""
    upstream_kind: Literal["openai", "crucible"] = "openai"
    """`openai`: an OpenAI-compatible server. `crucible`: another crucible_trio, read over its native API, so that a cut
    between the two loses nothing."""
    upstream_key: Secret | None = None
    """Sent to the upstream server as `Authorization: Bearer`."""
    upstream_thinking: dict[Literal["standard", "deep"], dict[str, Any]] | None = None
    """Per mode, the fields of the upstream request body that turn thinking on or off. Default:
    `chat_template_kwargs.enable_thinking`, which vLLM and llama.cpp understand. Where the server refuses the default
    field, requests are sent without it. In the environment, JSON."""
    upstream_extra_body: dict[str, Any] = {}
    """Fields added to every request to the upstream server. In the environment, JSON."""
    upstream_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The upstream server's name for `max_output_tokens`. OpenAI's own reasoning models need
    `max_completion_tokens`."""
    upstream_think_tags: dict[Text, Text] = msgspec.field(default_factory=lambda: {"<think>": "</think>"})
    """The tags around a trace inside the upstream server's text, from opening to closing tag. An opening tag counts
    only at the beginning of the text. Empty: the text is never searched for a trace. In the environment, JSON."""
    upstream_starts_in_trace: tuple[Literal["standard", "deep"], ...] = ()
    """Modes in which the upstream server's text begins inside the trace, without an opening tag, because the chat
    template has written it. DeepSeek's and some of Qwen's templates do this: set it to `deep`. In the environment,
    comma-separated."""
    upstream_reasoning_input: Literal["none", "reasoning_content", "reasoning"] = "none"
    """The field of an assistant message in which the reasoning of earlier turns goes back to the upstream server.
    Models that think between tool calls need it. llama.cpp and DeepSeek read `reasoning_content`, vLLM `reasoning`.
    `none`: it is not sent."""
    replay_speed: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """How much faster than recorded the replay runs. `inf` never waits."""

    def __post_init__(self) -> None:
        """Check that the upstream engine has an address."""
        if self.engine == "upstream" and self.upstream_base_url is None:
            message = "engine 'upstream' needs the URL of a server: set upstream_base_url (--base-url)"
            raise ConfigError(message, "engine")
        if self.upstream_kind == "crucible":
            default = EngineSettings()
            for name in _OPENAI_ONLY:
                if getattr(self, name) != getattr(default, name):
                    message = f"{name} is for upstream_kind 'openai': set it on the server behind upstream_base_url"
                    raise ConfigError(message, name)
