"""The demo page at `/`: static files, read once and served with the rules a browser is to keep."""

from __future__ import annotations

from hashlib import sha256
from importlib import resources
from typing import Final

from quart import Blueprint, Response, abort, request

_INDEX: Final = "index.html"
_TYPES: Final = {_INDEX: "text/html", "page.css": "text/css"} | dict.fromkeys(
    ("page.js", "readers.js", "view.js", "words.js"), "text/javascript"
)
_FILES: Final = {name: (resources.files(__package__) / "page" / name).read_bytes() for name in _TYPES}

_HEADERS: Final = {
    # Nothing from elsewhere and nothing inline, so that no text of a model or a question can become a script; and
    # nobody else's page may show this one in a frame, to catch its clicks.
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Kept, but asked for each time: the files must be of one version.
    "Cache-Control": "no-cache",
}


def add_page(blueprint: Blueprint) -> None:
    """Add `/` and the files it loads. They are the same for everybody, and need no key."""
    blueprint.add_url_rule("/", view_func=page, methods=["GET"])
    blueprint.add_url_rule("/page/<name>", view_func=page_file, methods=["GET"])


async def page() -> Response:
    """`GET /`: the page."""
    return await _file(_INDEX)


async def page_file(name: str) -> Response:
    """`GET /page/{name}`: what the page loads."""
    if name == _INDEX or name not in _FILES:  # the page has one address
        abort(404)
    return await _file(name)


async def _file(name: str) -> Response:
    response = Response(_FILES[name], content_type=f"{_TYPES[name]}; charset=utf-8")
    response.headers.update(_HEADERS)
    response.set_etag(sha256(_FILES[name]).hexdigest()[:32])
    return await response.make_conditional(request)
