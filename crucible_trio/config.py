"""One frozen settings object, from arguments, environment and a TOML file; units are in the names.

A cap is a refusal, never a loss. Every number an attacker could use has one, with the reason beside it.
"""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias, final

import msgspec

from crucible_trio.errors import ConfigError

logger = logging.getLogger(__name__)

ENVIRONMENT_PREFIX: Final = "CRUCIBLE_"
CONFIG_FILE_VARIABLE: Final = "CRUCIBLE_CONFIG"
CLIENT_KEY_VARIABLE: Final = "CRUCIBLE_KEY"  # of `crucible ask --url`; no setting of a server

Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
"""OpenAI's `reasoning_effort`."""


@final
class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be set. Names of environment variables: `CRUCIBLE_` and the name in capitals."""

    # What runs.
    engine: Literal["local", "upstream", "replay"] = "local"
    """Where tokens come from."""
    model: str | None = None
    """`local`: path of a GGUF file (default: the small model that is fetched once). `upstream`: the model's name there
    (default: the first it lists)."""
    local_slots: Count = 4
    """Streams that the local model works on at once; others wait their turn with their stream open."""
    local_threads: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Threads the local model computes with; 0: one less than there are cores."""
    local_context_tokens: Count = 2048
    """Prompt and answer together, per slot, for the local model."""
    upstream_base_url: str | None = None
    """Base URL of an OpenAI-compatible server, such as `http://127.0.0.1:8080/v1`."""
    upstream_key: str | None = None
    """Sent to the upstream as `Authorization: Bearer`."""
    upstream_thinking: dict[Literal["standard", "deep"], dict[str, Any]] | None = None
    """Per mode, fields for the upstream's request body that make it think, or not. Default: what vLLM and llama.cpp
    take, `chat_template_kwargs.enable_thinking`. In the environment, JSON."""
    upstream_extra_body: dict[str, Any] = {}
    """Fields for every request to the upstream. In the environment, JSON."""
    upstream_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The upstream's field for `max_output_tokens`; OpenAI's own reasoning models want the second."""
    replay_speed: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """How much faster than recorded; `inf` does not wait at all."""

    # One stream.
    buffer_tokens: Count = 64
    """Places in the buffer between an engine and its log. An engine runs at most 2 x this + 1 tokens ahead of its
    furthest reader: enough to hide a switch of tasks, little to throw away when nobody wants the rest."""
    stream_log_bytes: Annotated[int, msgspec.Meta(ge=8192)] = 16 * 1024 * 1024
    """Frames one log may hold; then the stream ends as `incomplete` with `log_limit`."""
    max_readers_per_stream: Count = 32
    """Readers attached to one stream at a time: each is an open connection somebody else pays for."""
    max_output_tokens: Count = 32_768
    """The most that a request may ask for, and where a stream ends whose engine ignores what was asked."""
    grace_seconds: Seconds = 120.0
    """How long a stream without readers waits for one."""
    max_grace_seconds: Seconds = 3600.0
    """The most that a request may ask for."""
    first_token_seconds: Seconds = 300.0
    """From the call of the engine to its first token; a large model may load first."""
    idle_seconds: Seconds = 120.0
    """Between two tokens."""
    total_seconds: Seconds = 3600.0
    """From acceptance to the end, waiting included."""
    max_deadline_seconds: Seconds = 6 * 3600.0
    """The most that a request may ask for, for each of the three."""

    # All streams.
    max_streams: Count = 1000
    """Running streams of all owners; more are refused with 503."""
    max_streams_per_owner: Count = 100
    """Running streams of one owner, where keys name owners; more are refused with 429."""
    total_log_bytes: Annotated[int, msgspec.Meta(ge=8192)] = 512 * 1024 * 1024
    """Frames of all logs, and the requests kept with them. Finished streams nobody reads go first, oldest first; then
    new streams get 503."""
    retention_seconds: Seconds = 600.0
    """How long a finished stream can be read; afterwards it is 410 for an hour, then 404."""
    drain_seconds: Seconds = 30.0
    """At shutdown, how long running streams may go on."""

    # The wire.
    heartbeat_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """Silence after which a comment is sent; proxies cut silent connections after 30 to 60 s."""
    retry_milliseconds: Count = 1000
    """How long a browser waits before it reconnects; without it, 3 s."""
    max_request_bytes: Count = 256 * 1024
    """Body of a request."""
    keys: dict[str, str] = {}
    """Owner to key. In the environment `alice:key1,bob:key2`. Empty: one anonymous owner, loopback only."""
    token_secret: str | None = None
    """Signs the stream tokens; random per process unless set."""
    allowed_origins: tuple[str, ...] = ()
    """Foreign pages that may call this server, as `https://host[:port]`. In the environment, comma-separated."""
    server_names: tuple[str, ...] = ()
    """Host names this server answers to beside the loopback names, while no keys are configured."""

    # The OpenAI-compatible API.
    openai_deep_efforts: tuple[Effort, ...] = ("medium", "high", "xhigh", "max")
    """Values of `reasoning_effort` that mean mode `deep`; the others, and none at all, mean `standard`. `low` asks for
    an answer soon, and here there is nothing between no trace and a whole one."""
    openai_deep_suffix: str = ":deep"
    """A model's name with this at its end is that model in mode `deep`, for clients that let people pick a name and
    nothing else. Empty: there are no such names."""
    openai_models: dict[str, str] = {}
    """Other names for models, for clients with a name built in; the suffix may follow: `{"o3": "smollm2-135m:deep"}`.
    In the environment, JSON."""

    # The server.
    bind: tuple[str, ...] = ("127.0.0.1:8000",)
    """Addresses to listen on, as `host:port`."""
    allow_open: bool = False
    """Serve others than this machine without keys."""
    max_connections: Count = 10_000
    """Open connections; more are closed at once."""
    write_timeout_seconds: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    """For each message of at most 16 KiB; a client that does not take it in this time is cut, and may come back."""
    flush_seconds: Seconds = 5.0
    """At shutdown, how long clients have to take what is left."""

    def __post_init__(self) -> None:
        if self.engine == "upstream" and self.upstream_base_url is None:
            message = "engine 'upstream' needs upstream_base_url (--base-url)"
            raise ConfigError(message)
        if len(set(self.keys.values())) != len(self.keys):
            message = "keys: two owners have the same key"
            raise ConfigError(message)
        if not all(self.keys) or not all(self.keys.values()):
            message = "keys: an owner or a key is empty"
            raise ConfigError(message)


def load_settings(environment: Mapping[str, str], *, config_file: Path | None = None, **arguments: object) -> Settings:
    """Put the settings together: arguments win over the environment, that over the file, that over the defaults.

    Args:
        environment: Usually `os.environ`.
        config_file: A TOML file with settings by name; default: what `CRUCIBLE_CONFIG` names, if anything.
        arguments: Settings by name; None counts as not given.

    Raises:
        ConfigError: A file, name or value is wrong. The message names it.
    """
    if config_file is None and CONFIG_FILE_VARIABLE in environment:
        config_file = Path(environment[CONFIG_FILE_VARIABLE])
    values: dict[str, object] = {}
    if config_file is not None:
        values |= _from_file(config_file)
    values |= _from_environment(environment)
    values |= {name: value for name, value in arguments.items() if value is not None}
    try:
        # Not strict: the environment holds strings only.
        return msgspec.convert(values, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(str(error)) from error


def _from_file(path: Path) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        message = f"cannot read the settings in {path}: {error}"
        raise ConfigError(message) from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in {CONFIG_FILE_VARIABLE, CLIENT_KEY_VARIABLE}:
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if name not in Settings.__struct_fields__:
            # Not an error: an orchestrator may name a service "crucible" and set CRUCIBLE_SERVICE_HOST by itself.
            logger.warning("%s is no setting and is ignored", variable)
        elif name == "keys":
            values[name] = _keys(text)
        elif name in {"upstream_thinking", "upstream_extra_body", "openai_models"}:
            values[name] = _json(variable, text)
        elif name in {"allowed_origins", "server_names", "bind", "openai_deep_efforts"}:
            values[name] = [part.strip() for part in text.split(",") if part.strip()]
        else:
            values[name] = text
    return values


def _keys(text: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for pair in text.split(","):
        owner, colon, key = pair.strip().partition(":")
        if not colon or owner in keys:
            message = "CRUCIBLE_KEYS must be owner:key,owner:key with each owner once"  # never quotes a key
            raise ConfigError(message)
        keys[owner] = key
    return keys


def _json(variable: str, text: str) -> object:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        message = f"{variable} is not JSON: {error}"
        raise ConfigError(message) from error
