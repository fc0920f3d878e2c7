"""The body of a request that is passed on."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from crucible_trio.apis.kit.errors import UnsupportedParameterError
from crucible_trio.apis.kit.parsing import valid
from crucible_trio.apis.kit.request_builder import RequestBuilder
from crucible_trio.errors import InvalidRequestError
from crucible_trio.records import MAX_DEPTH, is_deeper

# The server sets them. `stream_options` means nothing without `stream`.
_OURS: Final = frozenset({"stream", "stream_options"})

_decoder: Final = msgspec.json.Decoder(dict[str, object])


class PassedRequest(NamedTuple):
    """A request that has been read.

    Attributes:
        model: The engine's model.
        fields: What to send, with the engine's name of the model.
    """

    model: str
    fields: dict[str, object]


def read_request(body: bytes | memoryview, builder: RequestBuilder) -> PassedRequest:
    """Read a request. The upstream judges all fields but the model and `stream`.

    Raises:
        UnsupportedParameterError: The request asks for a stream.
        ModelNotFoundError: No model has this name.
        InvalidRequestError: The body is not a JSON object, or names no model: the default model is one for chats.
    """
    given = valid(lambda: _decoder.decode(body))
    if is_deeper(given):
        message = f"the body is more than {MAX_DEPTH} levels deep"
        raise InvalidRequestError(message)
    if given.get("stream") not in (None, False):
        raise UnsupportedParameterError("stream")
    name = given.get("model")
    if not isinstance(name, str):
        raise InvalidRequestError("the name of a model is needed here", "model")
    model, _ = builder.resolve(name)
    fields = {field: value for field, value in given.items() if field not in _OURS}
    return PassedRequest(model, fields | {"model": model})
