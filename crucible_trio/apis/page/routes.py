"""The demo page at `/`: files, read once and served with the security headers of a browser page."""

from __future__ import annotations

import html
from hashlib import sha256
from importlib import resources
from typing import ClassVar, Final, final

from quart import Blueprint, Response, abort, request

from crucible_trio.apis.kit.context import ApiContext
from crucible_trio.apis.kit.errors import ErrorShape

_INDEX: Final = "index.html"
_TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_FILES: Final = {
    file.name: file.read_bytes()
    for file in resources.files(__package__).iterdir()
    if file.name.rpartition(".")[2] in _TYPES
}
_NOTICE: Final = b"<!-- notice -->"  # in the page: here goes the engine's notice

_HEADERS: Final = {
    # Nothing from other servers and nothing inline, so that no text of a model or a question can become a script. No
    # other page may show this one in a frame, where it could catch the user's clicks.
    "Content-Security-Policy": (
        "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # The browser may store the files but must revalidate them each time: all must be of one version.
    "Cache-Control": "no-cache",
}


@final
class PageApi:
    """The demo page (`Api`). It is the same for every client and needs no key."""

    name: ClassVar[str] = "page"
    error_shape: ClassVar[ErrorShape | None] = None
    path_prefixes: ClassVar[tuple[str, ...]] = ()
    open_endpoints: ClassVar[frozenset[str]] = frozenset({"page", "page_file"})  # people follow links to the page

    def __init__(self, context: ApiContext) -> None:
        self._engine = context.pipeline.engine

    def add_to(self, blueprint: Blueprint) -> None:
        """Add `/` and the files that the page loads."""
        blueprint.add_url_rule("/", view_func=self.page, methods=["GET"])
        blueprint.add_url_rule("/page/<name>", view_func=self.page_file, methods=["GET"])

    async def page(self) -> Response:
        """`GET /`: the page, with the engine's notice."""
        notice = self._engine.info.notice
        line = f'<p id="notice">{html.escape(notice)}</p>' if notice else ""
        return await _response(_INDEX, _FILES[_INDEX].replace(_NOTICE, line.encode()))

    async def page_file(self, name: str) -> Response:
        """`GET /page/{name}`: a file that the page loads."""
        if name == _INDEX or name not in _FILES:  # the page has one address
            abort(404)
        return await _response(name, _FILES[name])


async def _response(name: str, content: bytes) -> Response:
    response = Response(content, content_type=f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8")
    response.headers.update(_HEADERS)
    response.set_etag(sha256(content).hexdigest()[:32])
    return await response.make_conditional(request)
