"""Makes the pictures of the page in docs/assets: four screenshots and a recording of a cut, a reload and a slow reader.

    python -m tests.page.images

It needs Chromium, the default model of `make serve`, and Pillow, which comes with the extra `bench`. It takes two to
five minutes: on a busy machine the small model may finish before it has to wait, and then the take is repeated.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio
from PIL import Image, ImageDraw

from crucible_trio import open_pipeline
from crucible_trio.engines.local.engine import open_local
from crucible_trio.server import Config, serve
from crucible_trio.web import create_app
from tests.browser import Chromium, Page, run_chromium

FOLDER = Path(__file__).parents[2] / "docs" / "assets"
SIZES = {"": (1280, 800), "-phone": (390, 844)}
SCHEMES = ("light", "dark")
RECORDING_SIZE = (1000, 640)
FRAME_SECONDS = 0.4
TAP_FRAMES = 2  # how long a click is marked

MARKS = "[...document.querySelectorAll('#marks li')].map((item) => item.className)"
READ = "Number(document.getElementById('read').textContent)"
RESUMED = f"{MARKS}.includes('resumed')"
WAITS = f"{MARKS}.lastIndexOf('waits') > {MARKS}.lastIndexOf('slow')"


@asynccontextmanager
async def served() -> AsyncIterator[str]:
    """The URL of a server with the default model."""
    async with open_local() as engine, open_pipeline(engine) as pipeline, trio.open_nursery() as nursery:
        config = Config()
        config.bind = ["127.0.0.1:0"]
        [url] = await nursery.start(partial(serve, create_app(pipeline), config))
        yield f"{url}/"
        nursery.cancel_scope.cancel()


async def until_in_the_answer(page: Page, condition: str) -> bool:
    """Wait until a condition is true. Returns whether it is, and the model's answer is not over.

    A fast model may end its answer before, or while, the condition becomes true.
    """
    is_over = f"{MARKS}.includes('end')"
    await page.until(f"{condition} || {is_over}", seconds=90)
    return bool(await page.evaluate(f"!{is_over}"))


async def show(page: Page) -> bool:
    """Ask, cut, and read slowly. Returns whether the model had to wait for the page."""
    await page.click("button", "Ask")
    if not await until_in_the_answer(page, f"{READ} > 12"):
        return False
    await page.evaluate("document.getElementById('cut').click()")
    if not await until_in_the_answer(page, RESUMED) or not await until_in_the_answer(page, f"{READ} > 40"):
        return False
    await page.click("button", "Read slowly")
    if not await until_in_the_answer(page, WAITS):
        return False
    await trio.sleep(2)
    return True


async def take_screenshots(browser: Chromium, url: str) -> None:
    for suffix, (width, height) in SIZES.items():
        for scheme in SCHEMES:
            page = await browser.open(url, width=width, height=height, prefers_color_scheme=scheme)
            while not await show(page):
                await page.click("button", "New chat")
                await page.evaluate("document.querySelector('#slow[aria-pressed=true]')?.click()")
                await page.type("Why do leaves change colour in autumn?")
            image = Image.open(io.BytesIO(await page.screenshot())).convert("RGB")
            path = FOLDER / f"page-{scheme}{suffix}.png"
            image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
            print(path, path.stat().st_size, flush=True)
            await page.click("button", "Stop")


class Recording:
    """Frames of a page, taken in the background."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._lock = trio.Lock()  # a screenshot of a page that navigates may never come
        self._frames: list[Image.Image] = []
        self._times: list[float] = []
        self._taps: list[tuple[int, float, float]] = []  # from which frame, and where

    async def run(self) -> None:
        while True:
            began = trio.current_time()
            async with self._lock:
                self._frames.append(Image.open(io.BytesIO(await self._page.screenshot())).convert("RGB"))
            self._times.append(began)
            await trio.sleep_until(began + FRAME_SECONDS)

    async def click(self, role: str, name: str) -> None:
        x, y = await self._page.middle_of(await self._page.find(role, name))
        self._taps.append((len(self._frames), x, y))
        await trio.sleep(2 * FRAME_SECONDS)  # the mark is there before the click has its effect
        await self._page.click(role, name)

    async def reload(self) -> None:
        async with self._lock:
            await self._page.reload()

    def save(self, path: Path) -> None:
        for first, x, y in self._taps:
            for frame in self._frames[first : first + TAP_FRAMES]:
                ImageDraw.Draw(frame).ellipse((x - 16, y - 16, x + 16, y + 16), outline="#d9480f", width=4)
        seconds = [after - before for before, after in zip(self._times, self._times[1:], strict=False)]
        durations = [round(1000 * duration) for duration in (*seconds, 4.0)]  # the last frame stays
        first, *others = self._frames
        first.save(
            path,
            save_all=True,
            append_images=others,
            duration=durations,
            loop=0,
            quality=50,
            method=4,
            minimize_size=True,
        )
        print(path, path.stat().st_size, f"{len(self._frames)} frames, {sum(durations) / 1000:.0f} s", flush=True)


async def record(browser: Chromium, url: str) -> bool:
    """Returns whether the recording shows a model that waits, and is saved."""
    width, height = RECORDING_SIZE
    page = await browser.open(url, width=width, height=height, prefers_color_scheme="light")
    recording = Recording(page)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recording.run)
        await trio.sleep(1)
        await recording.click("button", "Ask")
        has_waited = False
        if await until_in_the_answer(page, f"{READ} > 12"):
            await recording.click("button", "Cut the connection")
            if await until_in_the_answer(page, RESUMED):
                await trio.sleep(1)
                await recording.reload()
                await trio.sleep(0.5)
                await recording.click("button", "Read slowly")
                has_waited = await until_in_the_answer(page, WAITS)
        if has_waited:
            await trio.sleep(3)
            await recording.click("button", "Read slowly")
            await page.until(f"{MARKS}.includes('end')", seconds=90)
            await trio.sleep(2)
            recording.save(FOLDER / "page.webp")
        nursery.cancel_scope.cancel()
    return has_waited


async def main() -> None:
    """Make all pictures."""
    program = shutil.which("chromium")
    assert program is not None, "chromium is not installed"
    with run_chromium(program) as browser, trio.fail_after(600):
        async with served() as url, browser.use_in_this_loop():
            while not await record(browser, url):
                pass
            await take_screenshots(browser, url)


if __name__ == "__main__":
    trio.run(main)
