"""Headers and paths of the page's files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from quart_trio import QuartTrio

from crucible_trio import EngineInfo, Finish, open_pipeline
from crucible_trio.apis import page
from crucible_trio.engine import as_engine
from crucible_trio.engines.replay import ReplayEngine
from crucible_trio.engines.router import RouterEngine
from crucible_trio.settings import ApiSettings
from crucible_trio.web import blueprint, create_app

FOLDER = Path(page.__path__[0])
FILES = ["/", *(f"/page/{file.name}" for file in FOLDER.iterdir() if file.suffix in {".css", ".js"})]


async def silent(request):
    yield "."


@pytest.mark.parametrize("path", FILES)
async def test_every_file_has_security_and_cache_headers(path) -> None:
    async with open_pipeline(silent) as pipeline:
        client = create_app(pipeline, ApiSettings(keys={"alice": "k"})).test_client()
        response = await client.get(path)
        assert response.status_code == 200
        policy = response.headers["Content-Security-Policy"]
        assert policy.startswith(
            "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        )
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert response.headers["Referrer-Policy"] == "no-referrer"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-cache"
        kind = {"css": "text/css", "js": "text/javascript"}.get(path.rpartition(".")[2], "text/html")
        assert response.headers["Content-Type"] == f"{kind}; charset=utf-8"
        again = await client.get(path, headers={"If-None-Match": response.headers["ETag"]})
        assert (again.status_code, await again.get_data()) == (304, b"")
        stale = await client.get(path, headers={"If-None-Match": '"old"'})
        assert (stale.status_code, await stale.get_data()) == (200, await response.get_data())


@pytest.mark.parametrize("path", ["/page/", "/page/index.html", "/page/x", "/page/../page.py", "/page/%2e%2e/app.py"])
async def test_no_other_file_is_served(path) -> None:
    async with open_pipeline(silent) as pipeline:
        assert (await create_app(pipeline, ApiSettings(keys={"alice": "k"})).test_client().get(path)).status_code == 404


@pytest.mark.parametrize("path", FILES)
async def test_a_foreign_page_may_link_here_but_not_send_requests(path) -> None:
    async with open_pipeline(silent) as pipeline:
        client = create_app(pipeline, ApiSettings(keys={"alice": "k"})).test_client()
        foreign = {"Sec-Fetch-Site": "cross-site", "Host": "localhost"}
        assert (await client.get(path, headers=foreign)).status_code == 200
        assert (await client.get("/v1/streams", headers=foreign)).status_code == 403


async def test_the_page_loads_nothing_from_other_servers_and_works_below_a_prefix() -> None:
    async with open_pipeline(silent) as pipeline:
        app = QuartTrio(__name__)
        app.register_blueprint(blueprint(pipeline), url_prefix="/ai")
        client = app.test_client()
        html = await (await client.get("/ai/")).get_data(as_text=True)
        links = [link for link in re.findall(r'(?:src|href)="([^"]*)"', html) if not link.startswith("data:")]
        assert links == ["page/page.css", "page/page.js"]
        for link in links:
            response = await client.get(f"/ai/{link}")
            assert response.status_code == 200
            assert not re.search(r"https?://|[\"'(]//?[a-z]", await response.get_data(as_text=True))


class Noticed:
    """An engine whose notice changes, as a router's does."""

    def __init__(self, notice: str) -> None:
        self.info = EngineInfo(name="noticed", models=("m",), notice=notice)

    async def generate(self, request, output):
        await output.delta(".")
        return Finish()


async def test_the_page_says_that_a_replay_engine_is_no_model() -> None:
    for engine in (ReplayEngine(), RouterEngine([as_engine(silent), ReplayEngine()])):
        async with open_pipeline(engine) as pipeline:
            html = await (await create_app(pipeline).test_client().get("/")).get_data(as_text=True)
            assert '<p id="notice">This is a recording, not a model: every prompt gets the same text.</p>' in html


async def test_a_page_without_a_notice_has_no_empty_line_for_it() -> None:
    async with open_pipeline(silent) as pipeline:
        html = await (await create_app(pipeline).test_client().get("/")).get_data(as_text=True)
        assert "notice" not in html


async def test_a_notice_is_text_and_never_markup() -> None:
    async with open_pipeline(Noticed("<script>alert('x')</script> & more")) as pipeline:
        html = await (await create_app(pipeline).test_client().get("/")).get_data(as_text=True)
        assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; more" in html


async def test_a_changed_notice_changes_the_etag() -> None:
    engine = Noticed("One.")
    async with open_pipeline(engine) as pipeline:
        client = create_app(pipeline).test_client()
        old = {"If-None-Match": (await client.get("/")).headers["ETag"]}
        assert (await client.get("/", headers=old)).status_code == 304
        engine.info = EngineInfo(name="noticed", models=("m",), notice="Two.")
        new = await client.get("/", headers=old)
        assert (new.status_code, "Two." in await new.get_data(as_text=True)) == (200, True)
