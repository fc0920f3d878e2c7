"""Everything that can be set for a service, from options, environment and a TOML file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, final

import msgspec

from crucible_trio.config import Settings
from crucible_trio.errors import ConfigError
from crucible_trio.settings.apis import ApiSettings
from crucible_trio.settings.engines import EngineSettings
from crucible_trio.settings.server import ServerSettings
from crucible_trio.settings.upstreams import UpstreamSettings
from crucible_trio.settings.values import did_you_mean, make_struct, name_in_path, read_toml

logger = logging.getLogger(__name__)

ENVIRONMENT_PREFIX: Final = "CRUCIBLE_"
CONFIG_FILE_VARIABLE: Final = "CRUCIBLE_CONFIG"
CLIENT_KEY_VARIABLE: Final = "CRUCIBLE_KEY"  # read by `crucible ask --url`, not by a server

GROUPS: Final[tuple[type[msgspec.Struct], ...]] = (EngineSettings, Settings, ApiSettings, ServerSettings)
"""The classes of settings. Their fields have different names, so options, variables and files need no sections."""

_IN_JSON: Final = frozenset(
    {
        "upstream_thinking",
        "upstream_extra_body",
        "upstream_think_tags",
        "upstream_prefill",
        "upstreams",
        "openai_models",
    }
)
_LISTS: Final = frozenset(
    {"allowed_origins", "apis", "bind", "openai_deep_efforts", "server_names", "upstream_starts_in_trace"}
)

_NAMES: Final = tuple(name for group in GROUPS for name in group.__struct_fields__)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """The settings of `crucible serve`.

    Attributes:
        engine: The engine to run.
        pipeline: The limits and defaults of its streams.
        apis: Those of the HTTP APIs.
        server: Those of the server.
        origins: Where each setting came from that is not a default, such as `variable CRUCIBLE_BIND`.
    """

    engine: EngineSettings
    pipeline: Settings
    apis: ApiSettings
    server: ServerSettings
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        """Check what concerns several groups."""
        if self.server.workers > 1 and self.pipeline.log_url is None:
            message = (
                f"workers must be 1 without log_url, not {self.server.workers}: each process would keep its streams in "
                "its own memory, and a reader that reaches another process would not find its stream"
            )
            raise ConfigError(message, "workers")
        if self.pipeline.log_url is not None and self.apis.token_secret is None:
            message = (
                "log_url needs token_secret, because every process must sign stream tokens and traces with the same "
                "secret: put a long random text into CRUCIBLE_TOKEN_SECRET"
            )
            raise ConfigError(message, "log_url")

    @contextmanager
    def errors_name_origins(self) -> Iterator[None]:
        """Add to a `ConfigError` of the body where its setting came from."""
        try:
            yield
        except ConfigError as error:
            raise _with_origin(error, self.origins) from error


def load_settings(
    environment: Mapping[str, str],
    *,
    config_file: Path | None = None,
    option_names: Mapping[str, str] | None = None,
    **options: object,
) -> ServiceSettings:
    """Load all settings. Options win over the environment, the environment over the file, the file over the defaults.

    Args:
        environment: Usually `os.environ`. A variable is `CRUCIBLE_` and the name of its setting in capitals.
        config_file: A TOML file with settings by name. The default is the file that `CRUCIBLE_CONFIG` names, if any.
        option_names: For messages, the names that options have on the command line: `{"bind": "--bind"}`.
        options: Settings by name. None counts as absent.

    Raises:
        ConfigError: A file, name or value is wrong. The message names the setting and where it came from.
    """
    option_names = option_names or {}
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    sources = [
        *_from_file(environment, config_file),
        *_from_environment(environment),
        *(
            (name, value, f"option {option_names[name]}" if name in option_names else f"argument {name}")
            for name, value in options.items()
            if value is not None
        ),
    ]
    for name, value, origin in sources:
        if name not in _NAMES:
            message = f"unknown setting {name_in_path(name)} ({origin}){did_you_mean(name, _NAMES)}"
            raise ConfigError(message)
        values[name] = value
        origins[name] = origin
    if "upstreams" in values or "upstream_base_url" in values:
        values.setdefault("engine", "upstream")
    try:
        return ServiceSettings(
            engine=_with_keys(make_struct(EngineSettings, values), environment),
            pipeline=make_struct(Settings, values),
            apis=make_struct(ApiSettings, values),
            server=make_struct(ServerSettings, values),
            origins=origins,
        )
    except ConfigError as error:
        raise _with_origin(error, origins) from error


def _with_origin(error: ConfigError, origins: Mapping[str, str]) -> ConfigError:
    places = [
        origins[name] if re.search(rf"\b{name}\b", str(error)) else f"{name}, {origins[name]}"
        for name in error.settings
        if name in origins
    ]
    if error.settings and not places:
        places = ["default"]
    places = list(dict.fromkeys(places))
    return ConfigError(f"{error} ({', '.join(places)})") if places else error


def _with_keys(settings: EngineSettings, environment: Mapping[str, str]) -> EngineSettings:
    """Read the keys of the upstream servers from the variables that their tables name."""
    upstreams: dict[str, UpstreamSettings] = {}
    for name, table in settings.upstreams.items():
        key = None
        if table.key is not None:
            message = (
                f"upstreams.{name}.key must not be in the settings: name the variable that holds it in key_variable"
            )
            raise ConfigError(message, "upstreams")
        if table.key_variable is not None and not (key := environment.get(table.key_variable)):
            message = f"upstreams.{name}.key_variable names the variable {table.key_variable}, which is not set"
            raise ConfigError(message, "upstreams")
        upstreams[name] = msgspec.structs.replace(table, key=key)
    return msgspec.structs.replace(settings, upstreams=upstreams)


def _from_file(environment: Mapping[str, str], path: Path | None) -> Iterator[tuple[str, object, str]]:
    origin = "option --config"
    if path is None:
        if CONFIG_FILE_VARIABLE not in environment:
            return
        origin = f"variable {CONFIG_FILE_VARIABLE}"
        path = Path(environment[CONFIG_FILE_VARIABLE])
    if path == Path():
        message = f"the name of the settings file is missing ({origin})"
        raise ConfigError(message)
    for name, value in read_toml(path, "settings file", f" ({origin})").items():
        yield name, value, f"file {path}"


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, object, str]]:
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in {CONFIG_FILE_VARIABLE, CLIENT_KEY_VARIABLE}:
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        origin = f"variable {variable}"
        if name not in _NAMES:
            # Not an error: an orchestrator may name a service "crucible" and set CRUCIBLE_SERVICE_HOST for it.
            logger.warning("ignoring unknown setting %s%s", variable, did_you_mean(name, _NAMES))
        elif name == "keys" and not text.lstrip().startswith("{"):
            yield name, _keys(text), origin
        elif name in _IN_JSON or name == "keys":
            yield name, _json(name, text, origin), origin
        elif name in _LISTS:
            yield name, [part.strip() for part in text.split(",") if part.strip()], origin
        else:
            yield name, text, origin


def _keys(text: str) -> dict[str, str]:
    keys: dict[str, str] = {}
    for pair in text.split(","):
        owner, colon, key = pair.strip().partition(":")
        if not colon or owner in keys:
            message = "keys must be owner:key,owner:key with each owner once (variable CRUCIBLE_KEYS)"  # quotes no key
            raise ConfigError(message)
        keys[owner] = key
    return keys


def _json(name: str, text: str, origin: str) -> object:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        message = f"{name} must be JSON, and it is not ({origin})"
        raise ConfigError(message) from error
