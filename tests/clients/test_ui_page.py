"""The example of docs/examples/react, built with esbuild, in Chromium: the page shows the snapshot's text each time."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio
from quart import Response
from quart_trio import QuartTrio

from crucible_trio import open_pipeline
from crucible_trio.content import Reasoning
from crucible_trio.errors import EngineError
from crucible_trio.settings import load_settings
from crucible_trio.web import create_app

from .npm import PACKAGES, InstallError, Sandbox, install_packages

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "react"
AI_6 = {"ai": "ai-6", "@ai-sdk/react": "ai-6-react"}

# Wall-clock seconds. The machine may be shared and slow, so this limit makes a test fail and never makes it pass.
SECONDS = 90

ANSWERS = "[...document.querySelectorAll('[aria-label=assistant]')]"
TEXTS = f"{ANSWERS}.map((answer) => [...answer.querySelectorAll('.text')].map((part) => part.textContent).join(''))"
TRACES = f"{ANSWERS}.map((answer) => [...answer.querySelectorAll('.reasoning')].map((part) => part.textContent))"
STATUS = "document.querySelector('[role=status]')?.textContent"

Build = Callable[..., Any]
Serving = Callable[..., AbstractAsyncContextManager[Any]]


@pytest.fixture
def build_page(npm: str, sandbox: Sandbox, skip_missing: Callable[[str], NoReturn], tmp_path: Path) -> Build:
    """`await build_page()` returns a folder with the built page. Keywords replace packages by others."""
    try:
        packages = install_packages(npm, PACKAGES / "ui")
    except InstallError as error:
        skip_missing(str(error))

    async def build_page(aliases: dict[str, str]) -> Path:
        folder = tmp_path / "page"
        folder.mkdir()
        shutil.copy(EXAMPLE / "index.html", folder)
        [esbuild] = packages.glob("@esbuild/*/bin/esbuild")
        await Sandbox(sandbox.home, environment={"NODE_PATH": str(packages)}).run(
            esbuild,
            EXAMPLE / "chat.jsx",
            "--bundle",
            "--jsx=automatic",
            '--define:process.env.NODE_ENV="production"',
            f"--outfile={folder / 'chat.js'}",
            *(f"--alias:{name}={other}" for name, other in aliases.items()),
            folder=folder,
        )
        return folder

    return build_page


def add_page(app: Any, folder: Path, settings: dict[str, Any] | None = None) -> None:
    """Serve the page below `/react/`, as the back end of a page does."""

    @app.get("/react/")
    async def index() -> Response:
        page = (folder / "index.html").read_text("utf-8")
        start = f"<script>window.chatSettings = {json.dumps(settings or {})}</script>"
        return Response(page.replace("<script", f"{start}<script", 1), content_type="text/html; charset=utf-8")

    @app.get("/react/chat.js")
    async def script() -> Response:
        return Response((folder / "chat.js").read_bytes(), content_type="text/javascript; charset=utf-8")


@pytest.fixture
def serving_page(relayed: Callable[..., Any]) -> Serving:
    """`async with serving_page(engine, folder) as served`: this server with a built page, behind a relay."""

    @asynccontextmanager
    async def open_server(engine: Any, folder: Path, **settings: Any) -> AsyncIterator[Any]:
        values = load_settings({}, **settings)
        with trio.fail_after(SECONDS):
            async with open_pipeline(engine.run, values.pipeline) as pipeline:
                app = create_app(pipeline, values.apis)
                add_page(app, folder)
                async with relayed(pipeline, app, values.server) as served:
                    yield served

    return open_server


class Gates:
    """An engine that goes on from step to step when the test says so.

    Attributes:
        calls: The requests that it was called with.
    """

    def __init__(self, *steps: Any) -> None:
        self.steps = steps
        self.calls: list[Any] = []
        self._open = 1
        self._news = trio.lowlevel.ParkingLot()

    def open(self, steps: int = 1) -> None:
        self._open += steps
        self._news.unpark_all()

    async def run(self, request: Any) -> AsyncIterator[Any]:
        self.calls.append(request)
        for number, step in enumerate(self.steps):
            while self._open <= number:
                await self._news.park()
            if isinstance(step, Exception):
                raise step
            yield step


STEPS = (
    Reasoning("1. Leaves are green.\n", 0),
    Reasoning("2. It gets ", 1),
    Reasoning("cold \U0001f341.", 1),
    "Because",
    " of\n\u00e4utumn.",
)


async def open_chat(browser: Any, served: Any, chat: str = "c1") -> Any:
    page = await browser.open(f"{served.url}react/?chat={chat}")
    page.url = served.url
    await page.until(f"{STATUS} === 'ready'")
    return page


async def ask(page: Any, question: str = "Why?") -> None:
    await page.click("textbox", "Question")
    await page.type(question)
    await page.click("button", "Ask")


async def shows(page: Any, text: str) -> None:
    await page.until(f"({TEXTS}.at(-1) ?? '') === {json.dumps(text)}")


async def is_whole(page: Any, served: Any) -> None:
    """The page is ready, and shows exactly the text of the snapshot."""
    await page.until(f"{STATUS} === 'ready'")
    snapshot = await served.snapshot()
    await shows(page, snapshot.output)
    assert await page.evaluate(f"{TRACES}.at(-1) ?? []") == snapshot.trace


@pytest.mark.parametrize("aliases", [pytest.param({}, id="AI SDK 7"), pytest.param(AI_6, id="AI SDK 6")])
async def test_a_page_that_is_reloaded_in_trace_and_answer_shows_everything_once(
    chromium, build_page: Build, serving_page: Serving, aliases: dict[str, str]
) -> None:
    engine = Gates(*STEPS)
    async with serving_page(engine, await build_page(aliases)) as served, chromium() as browser:
        page = await open_chat(browser, served)
        await ask(page)
        await page.until(f"{TRACES}.length === 1 && {TRACES}[0].length === 1")
        await page.reload()
        await page.until(f"{TRACES}.length === 1 && {TRACES}[0].length === 1")
        engine.open()
        await page.until(f"{TRACES}[0].length === 2 && {TRACES}[0][1] === '2. It gets '")
        await page.reload()
        engine.open(2)
        await shows(page, "Because")
        await page.reload()
        await shows(page, "Because")
        engine.open()
        await is_whole(page, served)
        await page.reload()  # in doubt, the answer is replayed, and replaces itself
        await is_whole(page, served)
        assert len(await page.evaluate(TEXTS)) == 1
        await ask(page, "And?")
        await page.until(f"{TEXTS}.length === 2")
        await is_whole(page, served)
        assert [message.role for message in engine.calls[1].messages] == ["user", "assistant", "user"]
        assert engine.calls[1].messages[1].content == "Because of\n\u00e4utumn."
    assert len(engine.calls) == 2


async def test_an_answer_that_ends_while_no_page_is_open_is_not_lost(
    chromium, build_page: Build, serving_page: Serving
) -> None:
    engine = Gates(*STEPS)
    folder = await build_page({})
    async with serving_page(engine, folder, ui_replay_seconds=0) as served, chromium() as browser:
        page = await open_chat(browser, served)
        await ask(page)
        await page.until(f"{TRACES}.length === 1")
        await page.call("Page.navigate", url="about:blank")
        [stream] = await served.pipeline.list()
        while stream.log.readers:  # a server that has not noticed yet would send the rest, and count it as received
            await trio.sleep(0.01)
        engine.open(4)
        await stream.log.wait_finished()
        back = await browser.open(f"{served.url}react/?chat=c1")
        back.url = served.url
        await is_whole(back, served)


async def test_a_page_whose_connection_is_cut_resumes(chromium, build_page: Build, serving_page: Serving) -> None:
    engine = Gates(*STEPS)
    async with serving_page(engine, await build_page({})) as served, chromium() as browser:
        page = await open_chat(browser, served)
        await ask(page)
        content = f"[...{TRACES}.at(-1) ?? [], {TEXTS}.at(-1) ?? ''].join('')"
        so_far = ""
        await page.note("document.querySelector('[role=status]')")
        for step in STEPS:
            so_far += step if isinstance(step, str) else step.text
            await page.until(f"{content} === {json.dumps(so_far)}")
            statuses = await page.evaluate("noted.length")
            served.reset()
            # The answer may have ended already. Otherwise the page says for half a second that it does not stream.
            await page.until(f"[...noted.slice({statuses}), {STATUS}].some((status) => status !== 'streaming')")
            engine.open()
        await is_whole(page, served)
    assert len(engine.calls) == 1


async def test_two_tabs_show_one_chat_and_either_can_stop_it(
    chromium, build_page: Build, serving_page: Serving
) -> None:
    engine = Gates(*STEPS)
    async with serving_page(engine, await build_page({})) as served, chromium() as browser:
        first = await open_chat(browser, served)
        await ask(first)
        await first.until(f"{TRACES}.length === 1")
        second = await browser.open(f"{served.url}react/?chat=c1")
        second.url = served.url
        engine.open(3)
        for page in (first, second):
            await shows(page, "Because")
        await second.click("button", "Stop")
        for page in (first, second):
            await is_whole(page, served)
        assert (await served.snapshot()).status == "cancelled"
        await first.reload()
        await is_whole(first, served)
    assert len(engine.calls) == 1


async def test_a_failure_and_a_refusal_are_shown_in_words(chromium, build_page: Build, serving_page: Serving) -> None:
    engine = Gates("Hel", EngineError("model_failed", "It broke."))
    engine.open()
    async with serving_page(engine, await build_page({})) as served, chromium() as browser:
        page = await open_chat(browser, served)
        await ask(page)
        await page.until(f"{STATUS} === 'It broke.'")
        await shows(page, "Hel")
        other = await open_chat(browser, served, "x" * 300)
        await ask(other)
        await other.until(f"{STATUS} === 'Expected `str` of length <= 256 (in id)'")


async def test_a_page_of_another_origin_reads_and_stops_with_its_key(
    running_chromium, build_page: Build, serving_page: Serving, relayed: Callable[..., Any]
) -> None:
    engine = Gates(*STEPS)
    folder = await build_page({})
    own = QuartTrio("own")
    async with serving_page(engine, folder) as unused, relayed(unused.pipeline, own, load_settings({}).server) as site:
        origin = site.url.rstrip("/")
        keys = {"alice": "a" * 20}
        values = load_settings({}, keys=keys, allowed_origins=(origin,))
        async with relayed(unused.pipeline, create_app(unused.pipeline, values.apis), values.server) as api:
            settings = {"api": f"{api.url}v1/ui/chat", "headers": {"Authorization": f"Bearer {keys['alice']}"}}
            add_page(own, folder, settings)
            async with running_chromium.use_in_this_loop():
                page = await running_chromium.open(f"{site.url}react/?chat=c1")
                await page.until(f"{STATUS} === 'ready'")
                await ask(page)
                await page.until(f"{TRACES}.length === 1")
                await page.reload()
                engine.open(3)
                await shows(page, "Because")
                await page.click("button", "Stop")
                await page.until(f"{STATUS} === 'ready'")
                [stream] = await unused.pipeline.list(owner="alice")
                await shows(page, stream.snapshot().output)
                assert stream.status == "cancelled"
                assert page.problems == []
