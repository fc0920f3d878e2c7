"""The settings of the HTTP APIs."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal, TypeAlias, final

import msgspec

from crucible_trio.config import Count, Seconds, Secret, Text
from crucible_trio.errors import ConfigError
from crucible_trio.request import OnDisconnect
from crucible_trio.settings.server import HOST_NAME
from crucible_trio.settings.values import quote

Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""OpenAI's `reasoning_effort`."""

ApiName: TypeAlias = Literal["openai", "anthropic", "ui", "page"]

TraceField: TypeAlias = Literal["reasoning_content", "reasoning", "both"]

_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[0-9]{1,5})?")


@final
class ApiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits, defaults and access rules of the HTTP APIs."""

    apis: tuple[ApiName, ...] = ("openai", "anthropic", "ui", "page")
    """The APIs besides the native one: OpenAI's chat completions, responses, completions and embeddings, Anthropic's
    Messages, the AI SDK's UI message stream, and the demo page. Leave out those that this server should not have. In
    the environment, comma-separated."""

    # The wire.
    heartbeat_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """Silence after which the server sends a comment, or an event without content on OpenAI's and Anthropic's APIs.
    Proxies cut silent connections after 30 to 60 s."""
    retry_milliseconds: Count = 1000
    """How long a browser waits before it reconnects. Without this line it waits 3 s."""
    hold_seconds: Seconds = 2.0
    """How long OpenAI's and Anthropic's APIs wait with their status line for an upstream server's answer, so that its
    refusal becomes a status. 0: not at all."""
    max_request_bytes: Count = 20 * 1024 * 1024
    """Size limit of a request body. Images in base64 are part of it."""
    total_request_bytes: Count = 128 * 1024 * 1024
    """Size limit of all request bodies together, while they are received and parsed. At the limit a request gets 503,
    and a body that is larger than the limit gets 413. What parsed requests hold counts in `total_log_bytes`, which is
    four times as much by default. Answers of more than 64 KiB that are being written have a second limit of this size:
    beyond it a request for another one gets 503."""
    keys: dict[Text, Secret] = {}
    """From owner to key. In the environment `alice:key1,bob:key2`, or JSON. Without keys there is one anonymous owner,
    and only this machine can connect."""
    token_secret: Secret | None = None
    """Signs the stream tokens. Default: a random secret for each process."""
    allowed_origins: tuple[str, ...] = ()
    """Foreign pages that may call this server, as `https://host[:port]`. In the environment, comma-separated."""
    server_names: tuple[str, ...] = ()
    """Host names that the server answers to while no keys are configured, besides `localhost` and IP addresses. In a
    container network this is the name of the service. In the environment, comma-separated."""

    # OpenAI's and Anthropic's APIs.
    openai_deep_efforts: tuple[Effort, ...] = ("medium", "high", "xhigh", "max")
    """Values of `reasoning_effort` that mean mode `deep`. All others, and a missing value, mean `standard`. `low` asks
    for a quick answer, and a mode with a short trace does not exist."""
    openai_deep_suffix: str = ":deep"
    """A model name with this suffix means that model in mode `deep`. This is for clients that let the user choose only
    a model name. Empty: no such names."""
    openai_trace_field: TraceField = "reasoning_content"
    """The field of a chat completion that holds the trace. `both`: two fields with the same text."""
    strict_fields: bool = False
    """Refuse a field that steers the answer, such as `temperature`, if the model does not honour it, and an unknown
    field of a response request. Otherwise such fields are ignored, and the header `Crucible-Ignored` names them."""
    openai_models: dict[Text, Text] = {}
    """Other names for models, for clients with a built-in name. The target may have the suffix: `{"o3":
    "smollm2-135m:deep"}`. In the environment, JSON."""

    # Anthropic's API only.
    messages_on_disconnect: OnDisconnect = "pause"
    """What happens to a streamed message while its client is away. `pause`: it waits `grace_seconds`, so that the
    client can resume it. `cancel`: it stops immediately, which frees a model that serves one request at a time when a
    user interrupts an agent. `continue`: it goes on."""

    # The UI message stream.
    ui_replay_seconds: Seconds = 60.0
    """How long a page that was sent the end of an answer can get the answer again. Its connection may have been cut
    before the end arrived. 0: it gets 204 immediately."""

    def __post_init__(self) -> None:
        """Check the keys, the origins and the names. No message quotes a key."""
        if not all(self.keys) or not all(self.keys.values()):
            message = "keys must be a table from owners to keys, but an owner or a key is empty"
            raise ConfigError(message, "keys")
        if len(set(self.keys.values())) != len(self.keys):
            message = "keys must be different, but two owners have the same key"
            raise ConfigError(message, "keys")
        for origin in self.allowed_origins:
            if not _ORIGIN.fullmatch(origin):
                message = (
                    "allowed_origins must hold origins like https://chat.example.org, in lower case and without a path,"
                    f" not {quote(origin)}"
                )
                raise ConfigError(message, "allowed_origins")
        for name in self.server_names:
            if not HOST_NAME.fullmatch(name):
                message = f"server_names must hold host names like chat.example.org, without a port, not {quote(name)}"
                raise ConfigError(message, "server_names")
