"""The table of one upstream server, `[upstreams.NAME]` in a settings file."""

from __future__ import annotations

import re
from typing import Any, Final, Literal, TypeAlias, final, get_args

import msgspec

from crucible_trio.config import Secret, Text
from crucible_trio.engine import Capabilities
from crucible_trio.errors import ConfigError
from crucible_trio.settings.values import check_json, quote

Url: TypeAlias = Secret  # it may hold a password
ModeName: TypeAlias = Literal["standard", "deep"]
UpstreamKind: TypeAlias = Literal["openai", "crucible"]
ReasoningInput: TypeAlias = Literal["none", "reasoning_content", "reasoning"]
LimitField: TypeAlias = Literal["max_tokens", "max_completion_tokens"]
SamplingField: TypeAlias = Literal[
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "logit_bias",
    "verbosity",
]

# Fields that say how to translate between this server's requests and OpenAI's.
OPENAI_ONLY: Final = (
    "thinking",
    "starts_in_trace",
    "think_tags",
    "limit_field",
    "extra_body",
    "headers",
    "reasoning_input",
    "prefill",
)

# A token of RFC 9110, 5.6.2.
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_HEADER_VALUE: Final = re.compile(r"[!-~]([ -~]*[!-~])?")
# Headers that the engine or HTTP itself sets. A second one would break the request or the stream.
_OWN_HEADERS: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-length",
        "content-type",
        "expect",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)

# In capitals only: a key that is written here by mistake does not fit, so no message quotes it.
_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]*")


@final
class Prefill(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an upstream server is asked to go on with an answer that is the last message of a request."""

    body: dict[str, Any] = {}
    """Fields for the request's body."""
    message: dict[str, Any] = {}
    """Fields for the last message."""
    echoes: bool = False
    """Whether the server's reply repeats the answer so far before it goes on."""


@final
class CapabilitySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the models of an upstream server can do. Everything, unless the table says otherwise: the server judges."""

    tools: bool = True
    images: bool = True
    files: bool = True
    audio: bool = True
    structured_output: bool = True
    logprobs: bool = True
    reasoning_input: bool = True
    unknown_fields: bool = True
    sampling: tuple[SamplingField, ...] | None = None

    @property
    def declared(self) -> Capabilities:
        """The same as an engine declares it. `sampling` None means every field."""
        values = msgspec.structs.asdict(self)
        sampling = get_args(SamplingField) if self.sampling is None else self.sampling
        return Capabilities(**values | {"sampling": frozenset(sampling)})


@final
class UpstreamSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One upstream server."""

    # A table of `upstreams`.
    base_url: Url
    """Base URL of the server, such as `http://127.0.0.1:8080/v1`."""
    kind: UpstreamKind = "openai"
    """As `upstream_kind`."""
    key_variable: Text | None = None
    """The environment variable that holds the key. The key is sent as `Authorization: Bearer`."""
    key: Secret | None = None
    """The key. Only a program can set it. `load_settings` reads it from `key_variable`."""
    models: tuple[Text, ...] | None = None
    """The server's models that requests may name. Default: all models that the server lists."""
    thinking: dict[ModeName, dict[str, Any]] | None = None
    """As `upstream_thinking`."""
    starts_in_trace: tuple[ModeName, ...] = ()
    """As `upstream_starts_in_trace`."""
    think_tags: dict[Text, Text] = msgspec.field(default_factory=lambda: {"<think>": "</think>"})
    """As `upstream_think_tags`."""
    limit_field: LimitField = "max_tokens"
    """As `upstream_limit_field`."""
    extra_body: dict[str, Any] = {}
    """As `upstream_extra_body`."""
    reasoning_input: ReasoningInput = "none"
    """As `upstream_reasoning_input`."""
    prefill: Prefill | None = None
    """As `upstream_prefill`."""
    headers: dict[Text, Secret] = {}
    """Headers of every request to the server."""
    capabilities: CapabilitySettings = CapabilitySettings()
    """What the models of the server cannot do, such as `{images = false}`. A request that needs it is not sent to this
    server. `sampling` lists the sampling fields that the models honour. Default: everything can be sent, and the server
    judges."""

    def __post_init__(self) -> None:
        """Check the variable's name and the headers. No message quotes a value that may be a key."""
        if self.key_variable is not None and not _VARIABLE.fullmatch(self.key_variable):
            message = "key_variable must be the name of a variable in capitals, such as VLLM_KEY, and not the key"
            raise ConfigError(message, "upstreams")
        if self.models is not None and (not self.models or len(set(self.models)) != len(self.models)):
            message = "models must name at least one model, and each model once"
            raise ConfigError(message, "upstreams")
        if self.kind == "crucible":
            for part in msgspec.structs.fields(type(self)):
                if part.name in OPENAI_ONLY and getattr(self, part.name) != default_of(part):
                    message = f"{part.name} is for kind 'openai': set it on the server behind base_url"
                    raise ConfigError(message, "upstreams")
        check_json("thinking", self.thinking)
        check_json("extra_body", self.extra_body)
        check_prefill("prefill", self.prefill)
        for name, value in self.headers.items():
            if not _HEADER_NAME.fullmatch(name):
                message = f"headers has the entry {quote(name)}, which is not the name of an HTTP header"
                raise ConfigError(message, "upstreams")
            if name.lower() == "authorization":
                message = f"headers must not hold {name}: name the variable that holds the key in key_variable"
                raise ConfigError(message, "upstreams")
            if name.lower() in _OWN_HEADERS:
                message = f"headers must not hold {name}, which this server sets itself"
                raise ConfigError(message, "upstreams")
            if not _HEADER_VALUE.fullmatch(value):
                message = f"headers.{name} holds a character that an HTTP header cannot carry"
                raise ConfigError(message, "upstreams")


def check_prefill(name: str, prefill: Prefill | None) -> None:
    """Check that the fields of a prefill can be sent as JSON.

    Raises:
        ConfigError: They cannot.
    """
    if prefill is not None:
        check_json(name, {"body": prefill.body, "message": prefill.message})


def default_of(part: msgspec.structs.FieldInfo) -> object:
    """The default of a setting that has one."""
    return part.default_factory() if part.default is msgspec.NODEFAULT else part.default
