"""Ask another crucible_trio for its models and their capabilities."""

from __future__ import annotations

from typing import Final

import msgspec
import trio

from crucible_trio.client import Client
from crucible_trio.engine import Capabilities, EngineInfo
from crucible_trio.errors import ConfigError, ServerRefusedError, StreamLostError
from crucible_trio.request import Sampling

# Seconds. The models are asked for at start, where no stream's deadlines apply.
LIST_TIMEOUT: Final = 10.0

EVERYTHING: Final = Capabilities.of(Capabilities.__dataclass_fields__, {*Sampling.__struct_fields__, "verbosity"})
"""The capabilities of a model that was not asked for. The upstream server refuses what it cannot do."""


class _ListedModel(msgspec.Struct):
    id: str
    sampling: frozenset[str] = frozenset()
    capabilities: frozenset[str] = frozenset()


class _ModelList(msgspec.Struct):
    data: list[_ListedModel]


async def ask_for_models(client: Client, name: str, shown: str) -> EngineInfo:
    """Ask a server for its models.

    Args:
        client: Of the server.
        name: Of the engine.
        shown: The server's URL, for messages.

    Returns:
        An engine's info with at least one model.

    Raises:
        ConfigError: The server is unreachable, sends an invalid list or lists no models. The message says what to do.
    """
    hint = "check the base URL, or name the model with --model"
    try:
        with trio.fail_after(LIST_TIMEOUT):
            listed = msgspec.convert(await client.models(), _ModelList).data
    except (StreamLostError, trio.TooSlowError) as error:
        message = f"cannot get the list of models from {shown}: start the server, or {hint}"
        raise ConfigError(message, "upstream_base_url") from error
    except ServerRefusedError as error:
        message = f"{shown} returned status {error.status} instead of a list of models: {hint}"
        raise ConfigError(message, "upstream_base_url") from error
    except msgspec.ValidationError as error:
        message = f"{shown} returned an invalid list of models: {hint}"
        raise ConfigError(message, "upstream_base_url") from error
    if not listed:
        message = f"{shown} lists no models: {hint}"
        raise ConfigError(message, "upstream_base_url")
    by_model = {model.id: Capabilities.of(model.capabilities, model.sampling) for model in listed}
    return EngineInfo(name=name, models=tuple(by_model), by_model=by_model, waits_for_upstream=True)
