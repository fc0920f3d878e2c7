"""Ask another crucible_trio for its models and their capabilities."""

from __future__ import annotations

from typing import Final

import msgspec
import trio

from crucible_trio.client import Client
from crucible_trio.engine import Capabilities
from crucible_trio.engines.upstream.discovery import usable_names
from crucible_trio.errors import EngineError, ServerRefusedError, StreamExpiredError, StreamLostError
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


async def ask_for_models(client: Client, shown: str) -> dict[str, Capabilities]:
    """Ask a server for its models.

    Args:
        client: Of the server.
        shown: The server's URL, for messages.

    Returns:
        At least one model, with its capabilities.

    Raises:
        EngineError: The server is unreachable, sends an invalid list or lists no models. `status` is the HTTP status,
            if one came.
    """
    try:
        with trio.fail_after(LIST_TIMEOUT):
            listed = msgspec.convert(await client.models(), _ModelList).data
    except (StreamLostError, StreamExpiredError, trio.TooSlowError) as error:  # the second stands for status 410
        message = f"cannot get the list of models from {shown}"
        raise EngineError("upstream_unreachable", message, retryable=True) from error
    except ServerRefusedError as error:
        message = f"{shown} returned status {error.status} instead of a list of models"
        raise EngineError("upstream_error", message, retryable=True, status=error.status) from error
    except msgspec.ValidationError as error:
        message = f"{shown} returned an invalid list of models"
        raise EngineError("upstream_invalid_response", message, status=200) from error
    by_name = {model.id: Capabilities.of(model.capabilities, model.sampling) for model in listed}
    names = usable_names(by_name)
    if not names:
        message = f"{shown} lists no models"
        raise EngineError("upstream_invalid_response", message, status=200)
    return {name: by_name[name] for name in names}
