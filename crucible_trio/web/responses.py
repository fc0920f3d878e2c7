"""The two plain answers every route needs."""

from __future__ import annotations

import msgspec
from quart import Response


def json_response(value: object, status: int = 200) -> Response:
    """An answer in JSON that nobody caches."""
    response = Response(msgspec.json.encode(value), status, content_type="application/json")
    response.headers["Cache-Control"] = "no-store"
    return response


def no_content() -> Response:
    """204. The empty bytes matter: with no body at all Quart would make one that needs asyncio."""
    response = Response(b"", 204)
    del response.headers["Content-Type"]
    del response.headers["Content-Length"]
    return response
