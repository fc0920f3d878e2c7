"""The responses that routes of every API need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from quart import Response
from quart.wrappers.response import ResponseBody
from werkzeug.exceptions import HTTPException

from crucible_trio import sse
from crucible_trio.apis.kit.errors import ErrorAnswer, ErrorShape, answer_to_http_error
from crucible_trio.engine import Capabilities, Engine, engine_of
from crucible_trio.stream import Stream

# An event stream is always UTF-8. Some clients, such as Python's `requests`, read Latin-1 unless the type says so.
_EVENT_STREAM: Final = f"{sse.MEDIA_TYPE}; charset=utf-8"


def json_response(value: object, status: int = 200) -> Response:
    """A response in JSON that no cache may store."""
    return encoded_json_response(msgspec.json.encode(value), status)


def encoded_json_response(content: bytes, status: int = 200) -> Response:
    """A response in JSON that is already encoded."""
    response = Response(content, status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def text_response(text: str, status: int = 200) -> Response:
    """A response in plain text that no cache may store."""
    response = Response(text, status, content_type="text/plain; charset=utf-8")
    response.headers["Cache-Control"] = "no-store"
    return response


def no_content() -> Response:
    """204. The empty bytes are needed: for no body at all, Quart would make one that needs asyncio."""
    response = Response(b"", 204)
    del response.headers["Content-Type"]
    del response.headers["Content-Length"]
    return response


def event_response(body: ResponseBody | bytes, stream: Stream | None = None) -> Response:
    """An event stream.

    Args:
        body: Its events. Empty bytes for an answer to HEAD.
        stream: The stream that is read. None if HEAD asks before there is a stream.
    """
    response = Response(body, content_type=_EVENT_STREAM)
    response.timeout = None  # Quart's RESPONSE_TIMEOUT would cut a healthy stream without an error
    response.headers.update(
        {
            "Cache-Control": "no-store, no-transform",  # proxies that compress also buffer
            "X-Accel-Buffering": "no",
            "X-Content-Type-Options": "nosniff",
        }
    )
    response.headers.pop("Content-Length", None)  # set for HEAD, but the length of a stream is unknown
    return response if stream is None else name_stream(response, stream)


def name_stream(response: Response, stream: Stream) -> Response:
    """Add the stream's id, so that a client of any API can read the stream on the native wire."""
    response.headers["Crucible-Stream"] = stream.id
    return response


def name_ignored(response: Response, names: Sequence[str]) -> None:
    """Name the fields of the request that were ignored because the model does not honour them, if there are any."""
    if names:
        response.headers["Crucible-Ignored"] = ", ".join(names)


def error_response(answer: ErrorAnswer, shape: ErrorShape) -> Response:
    """An error in the shape of one API."""
    body = shape.body(answer)
    response = text_response(body, answer.status) if isinstance(body, str) else json_response(body, answer.status)
    if answer.retry_after is not None:
        response.headers["Retry-After"] = str(answer.retry_after)
    if answer.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    response.headers.update(shape.headers(answer))
    return response


def http_error_response(error: HTTPException, shape: ErrorShape) -> Response:
    """An error that Quart raised, in the shape of one API and with the headers Quart gives it, such as `Allow`."""
    response = error_response(answer_to_http_error(error), shape)
    for name, value in error.get_headers():
        if name.lower() != "content-type":
            response.headers[name] = value
    return response


def model_entries(engine: Engine, models: Iterable[str]) -> list[dict[str, object]]:
    """Models, as every API lists them."""
    info = engine.info  # a router puts it together anew each time
    return [_model_entry(engine, model, info.capabilities_of(model)) for model in models]


def _model_entry(engine: Engine, model: str, can: Capabilities) -> dict[str, object]:
    """One model. `owned_by` is the engine that generates."""
    return {
        "id": model,
        "object": "model",
        "created": 0,
        "owned_by": engine_of(engine, model).info.name,
        "sampling": sorted(can.sampling),
        "capabilities": sorted(can.names),
    }
