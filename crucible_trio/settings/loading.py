"""Everything that can be set for a service, from options, environment and a TOML file."""

from __future__ import annotations

import logging
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, final

import msgspec

from crucible_trio.config import Settings
from crucible_trio.errors import ConfigError
from crucible_trio.settings.apis import ApiSettings
from crucible_trio.settings.engines import EngineSettings
from crucible_trio.settings.server import ServerSettings

logger = logging.getLogger(__name__)

ENVIRONMENT_PREFIX: Final = "CRUCIBLE_"
CONFIG_FILE_VARIABLE: Final = "CRUCIBLE_CONFIG"
CLIENT_KEY_VARIABLE: Final = "CRUCIBLE_KEY"  # read by `crucible ask --url`, not by a server

GROUPS: Final[tuple[type[msgspec.Struct], ...]] = (EngineSettings, Settings, ApiSettings, ServerSettings)
"""The classes of settings. Their fields have different names, so options, variables and files need no sections."""

_IN_JSON: Final = frozenset({"upstream_thinking", "upstream_extra_body", "openai_models"})
_LISTS: Final = frozenset({"allowed_origins", "server_names", "bind", "openai_deep_efforts"})
# For the name of a field in a dict, msgspec says ``... - at `key` in `$.a` ``.
_PATH: Final = re.compile(r" - at (?:`key` in )?`\$\.?(?P<path>[^`]*)`$")

Group = TypeVar("Group", bound=msgspec.Struct)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """The settings of `crucible serve`.

    Attributes:
        engine: The engine to run.
        pipeline: The limits and defaults of its streams.
        apis: Those of the HTTP APIs.
        server: Those of the server.
    """

    engine: EngineSettings
    pipeline: Settings
    apis: ApiSettings
    server: ServerSettings


def load_settings(
    environment: Mapping[str, str], *, config_file: Path | None = None, **options: object
) -> ServiceSettings:
    """Load all settings. Options win over the environment, the environment over the file, the file over the defaults.

    Args:
        environment: Usually `os.environ`. A variable is `CRUCIBLE_` and the name of its setting in capitals.
        config_file: A TOML file with settings by name. The default is the file that `CRUCIBLE_CONFIG` names, if any.
        options: Settings by name. None counts as absent.

    Raises:
        ConfigError: A file, name or value is wrong. The message names the setting and where it came from.
    """
    if config_file is None and CONFIG_FILE_VARIABLE in environment:
        config_file = Path(environment[CONFIG_FILE_VARIABLE])
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    sources = [
        *(_from_file(config_file) if config_file is not None else ()),
        *_from_environment(environment),
        *((name, value, "option") for name, value in options.items() if value is not None),
    ]
    for name, value, origin in sources:
        if not _is_setting(name):
            message = f"unknown setting {name!r} ({origin})"
            raise ConfigError(message)
        values[name] = value
        origins[name] = origin
    return ServiceSettings(
        engine=_convert(values, origins, EngineSettings),
        pipeline=_convert(values, origins, Settings),
        apis=_convert(values, origins, ApiSettings),
        server=_convert(values, origins, ServerSettings),
    )


def _convert(values: Mapping[str, object], origins: Mapping[str, str], group: type[Group]) -> Group:
    own = {name: value for name, value in values.items() if name in group.__struct_fields__}
    try:
        # Not strict, because the environment holds only strings.
        return msgspec.convert(own, group, strict=False)
    except msgspec.ValidationError as error:
        found = _PATH.search(str(error))
        path = found["path"] if found is not None else ""
        name = re.split(r"[.\[]", path)[0]
        reason = _PATH.sub("", str(error))
        message = f"{path} ({origins[name]}): {reason}" if name in origins else reason
        raise ConfigError(message) from error


def _is_setting(name: str) -> bool:
    return any(name in group.__struct_fields__ for group in GROUPS)


def _from_file(path: Path) -> Iterator[tuple[str, object, str]]:
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeError, RecursionError, tomllib.TOMLDecodeError) as error:
        message = f"cannot read the settings in {path}: {error}"
        raise ConfigError(message) from error
    for name, value in values.items():
        yield name, value, str(path)


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, object, str]]:
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable in {CONFIG_FILE_VARIABLE, CLIENT_KEY_VARIABLE}:
            continue
        name = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
        if not _is_setting(name):
            # Not an error: an orchestrator may name a service "crucible" and set CRUCIBLE_SERVICE_HOST for it.
            logger.warning("ignoring unknown setting %s", variable)
        elif name == "keys":
            yield name, _keys(text), variable
        elif name in _IN_JSON:
            yield name, _json(variable, text), variable
        elif name in _LISTS:
            yield name, [part.strip() for part in text.split(",") if part.strip()], variable
        else:
            yield name, text, variable


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
    except (msgspec.DecodeError, RecursionError) as error:
        message = f"{variable} is not JSON: {error}"
        raise ConfigError(message) from error
