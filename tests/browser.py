"""Debian's Chromium, driven from the event loop that also serves its pages.

The tests control the browser through two pipes, with its DevTools protocol: JSON messages that end with NUL. So they
need no package and no port, and one task can wait for the page and for the server. Elements are found as a screen
reader finds them, by role and name.
"""

from __future__ import annotations

import base64
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import msgspec
import pytest
import trio

from crucible_trio import Pipeline
from crucible_trio.server import Config, serve
from crucible_trio.settings import ServerSettings

Json = dict[str, Any]

TURN = "[...document.querySelectorAll('.turn')].at(-1)"
"""The last turn of the demo page's conversation, in JavaScript."""
ANSWER = f"{TURN}?.querySelector('.answer .text').textContent"
"""The text of its answer."""

# Wall-clock seconds. The machine may be shared and slow, so this limit makes a test fail and never makes it pass.
_CONDITION_SECONDS = 20

_ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
# Chromium reads commands from descriptor 3 and answers on 4. The pipes may have these numbers, so move them away first.
_LAUNCH = """
import fcntl, os, sys
commands, answers = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(commands, 3)
os.dup2(answers, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), " ": (32, " "), "ArrowDown": (40, "")}


# The browser


class DevToolsError(Exception):
    """Chromium refused a command."""


class Chromium:
    """A running browser. The tests use it one after another.

    Args:
        commands: Descriptor of the pipe for its commands.
        answers: Descriptor of the pipe for its answers.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._descriptors = commands, answers
        self._numbers = count(1)
        self._received = bytearray()  # may end in an incomplete message when a test ends
        self._waiting: dict[int, trio.MemorySendChannel[Json]] = {}
        self._pages: dict[str, Page] = {}

    @asynccontextmanager
    async def use_in_this_loop(self) -> AsyncIterator[None]:
        """Use copies of the descriptors in this loop. Leaving closes the pages."""
        commands, answers = (trio.lowlevel.FdStream(os.dup(number)) for number in self._descriptors)
        async with commands, answers, trio.open_nursery() as nursery:
            self._commands, self._sending = commands, trio.Lock()
            nursery.start_soon(self._read, answers)
            try:
                yield
            finally:
                with trio.move_on_after(5, shield=True):
                    for page in self._pages.values():
                        await page.call("Page.close")
                self._pages.clear()
                nursery.cancel_scope.cancel()

    async def _read(self, answers: trio.abc.ReceiveStream) -> None:
        async for data in answers:
            self._received += data
            *messages, self._received = self._received.split(b"\0")
            for message in map(msgspec.json.decode, messages):
                if waiting := self._waiting.pop(message.get("id"), None):
                    waiting.send_nowait(message)
                elif page := self._pages.get(message.get("sessionId", "")):
                    page.handle_event(message["method"], message["params"])

    async def call(self, method: str, session: str | None = None, **params: Any) -> Json:
        number = next(self._numbers)
        send, receive = trio.open_memory_channel[Json](1)
        self._waiting[number] = send
        command = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        async with self._sending:
            await self._commands.send_all(msgspec.json.encode(command) + b"\0")
        answer = await receive.receive()
        if "error" in answer:
            raise DevToolsError(method, answer["error"])
        return answer["result"]

    async def open(self, url: str, *, width: int = 1000, height: int = 800, **media: str) -> Page:
        """Open a new page. `media` are CSS media features, such as `prefers_color_scheme="dark"`."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        page = self._pages[attached["sessionId"]] = Page(partial(self.call, session=attached["sessionId"]), url)
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            await page.call(f"{domain}.enable")
        await page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        await page.call("Emulation.setEmulatedMedia", features=features)
        await page.call("Page.navigate", url=url)
        await page.loaded()
        return page

    def check(self) -> None:
        """Fail if a page had a problem or sent a request to another server."""
        for page in self._pages.values():
            assert page.problems == []
            assert [url for url in page.requests if not url.startswith((page.url, "data:"))] == []


@dataclass
class Page:
    """One tab.

    Attributes:
        requests: The URLs that it requested, in order.
        problems: Exceptions, errors in the console, and violations of its content security policy.
    """

    call: Callable[..., Awaitable[Json]]
    url: str
    requests: list[str] = field(default_factory=list)
    problems: list[object] = field(default_factory=list)

    def handle_event(self, method: str, params: Json) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(params["exceptionDetails"])
            case "Runtime.consoleAPICalled" if params["type"] in {"error", "warning", "assert"}:
                self.problems.append(params["args"])
            # The browser also reports refused requests and cut connections, which the tests expect.
            case "Log.entryAdded" if params["entry"]["source"] != "network":
                self.problems.append(params["entry"])

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression. Waits for a promise."""
        answer = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise DevToolsError(expression, answer["exceptionDetails"])
        return answer["result"].get("value")

    async def until(self, expression: str, *, seconds: float = _CONDITION_SECONDS) -> None:
        """Wait until a JavaScript expression is true in the page."""
        value = None
        with trio.move_on_after(seconds):
            while True:
                try:
                    value = await self.evaluate(expression)
                except DevToolsError as error:  # while the page navigates
                    value = error
                if value is True:
                    return
                await trio.sleep(0.01)
        pytest.fail(f"{expression} is {value!r} after {seconds} s. Page text: {await self.text()!r}")

    async def note(self, element: str) -> None:
        """Keep each text that an element has from now on. Polling can miss one that does not stay (`noted`)."""
        await self.evaluate(f"""{{
            window.noted = [];
            const element = {element};
            const note = () => noted.push(element.textContent);
            new MutationObserver(note).observe(element, {{ childList: true, characterData: true, subtree: true }});
        }}""")

    async def noted(self, text: str) -> None:
        """Wait until the element that `note` watches has or had a text."""
        await self.until(f"noted.includes({msgspec.json.encode(text).decode()})")

    async def loaded(self) -> None:
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def reload(self) -> None:
        await self.evaluate("window.isOld = true")
        await self.call("Page.reload")
        await self.until("window.isOld === undefined && document.readyState === 'complete'")

    async def text(self) -> str:
        return await self.evaluate("document.body.innerText")

    async def content(self, element_id: str) -> str:
        return await self.evaluate(f"document.getElementById('{element_id}').textContent")

    async def status_is(self, words: str) -> None:
        await self.until(f"document.getElementById('status').textContent === {msgspec.json.encode(words).decode()}")

    async def answer_is(self, words: str) -> None:
        await self.until(f"{ANSWER} === {msgspec.json.encode(words).decode()}")

    async def find(self, role: str, name: str) -> int:
        """The only element with this role and name in the accessibility tree."""
        document = await self.call("Runtime.evaluate", expression="document")
        found = await self.call(
            "Accessibility.queryAXTree", objectId=document["result"]["objectId"], role=role, accessibleName=name
        )
        nodes = [node["backendDOMNodeId"] for node in found["nodes"] if not node["ignored"]]
        assert len(nodes) == 1, f"{len(nodes)} elements with the role {role} and the name {name!r}"
        return nodes[0]

    async def middle_of(self, node: int) -> tuple[float, float]:
        """Scroll an element into view, and give the place of its middle."""
        await self.call("DOM.scrollIntoViewIfNeeded", backendNodeId=node)
        quad = (await self.call("DOM.getContentQuads", backendNodeId=node))["quads"][0]
        return sum(quad[0::2]) / 4, sum(quad[1::2]) / 4

    async def click(self, role: str, name: str) -> None:
        """Click the middle of an element."""
        x, y = await self.middle_of(await self.find(role, name))
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def press(self, key: str, *, shift: bool = False) -> None:
        code, text = _KEYS[key]
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                text=text if kind == "keyDown" else "",
                modifiers=8 if shift else 0,
            )

    async def type(self, text: str) -> None:
        """Replace the text of the focused element."""
        await self.evaluate("document.activeElement.select()")
        await self.call("Input.insertText", text=text)

    async def screenshot(self) -> bytes:
        """The visible part of the page as a PNG file."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])

    async def ask(self, question: str = "Why?", *, mode: str = "deep") -> None:
        await self.click("textbox", "Question")
        await self.type(question)
        await self.click("radio", {"deep": "Deep, with reasoning", "standard": "Standard"}[mode])
        await self.click("button", "Ask")

    async def marks(self) -> list[str]:
        """The marks of the timeline, without their times."""
        lines = await self.evaluate("[...document.querySelectorAll('#marks li')].map((item) => item.textContent)")
        return [line.partition(": ")[2] for line in lines]


@contextmanager
def run_chromium(program: str) -> Iterator[Chromium]:
    """Run a browser. Leaving ends it."""
    commands_read, commands_write = os.pipe()
    answers_read, answers_write = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        launch = [sys.executable, "-c", _LAUNCH, str(commands_read), str(answers_write), program, *_ARGUMENTS]
        with subprocess.Popen(
            [*launch, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(commands_read, answers_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            os.close(commands_read)
            os.close(answers_write)
            try:
                yield Chromium(commands_write, answers_read)
            finally:
                os.close(commands_write)  # Chromium exits when its pipe is closed
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                os.close(answers_read)


@pytest.fixture(scope="session")
def running_chromium(need_program: Callable[[str], str]) -> Iterator[Chromium]:
    with run_chromium(need_program("chromium")) as browser:
        yield browser


@pytest.fixture
def chromium(running_chromium: Chromium) -> Callable[[], AbstractAsyncContextManager[Chromium]]:
    """`async with chromium() as browser`. Leaving fails if a page had a problem."""

    @asynccontextmanager
    async def open_chromium() -> AsyncIterator[Chromium]:
        async with running_chromium.use_in_this_loop():
            yield running_chromium
            running_chromium.check()

    return open_chromium


# The server


@dataclass
class RelayedServer:
    """A pipeline, its server, and a relay in front of the server whose connections can be reset.

    Attributes:
        max_chunk: The largest chunk in bytes that the browser gets. None: any size.
    """

    pipeline: Pipeline
    port: int
    connections: set[trio.SocketStream] = field(default_factory=set)
    max_chunk: int | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def snapshot(self) -> Any:
        """The snapshot of the newest stream."""
        return next(iter(await self.pipeline.list())).snapshot()

    def reset(self) -> None:
        """Reset all open connections, as a lost network does."""
        for connection in self.connections:
            connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.socket.close()

    async def relay(self, far_port: int, near: trio.SocketStream) -> None:
        self.connections.add(near)
        try:
            async with await trio.open_tcp_stream("127.0.0.1", far_port) as far, trio.open_nursery() as nursery:

                async def copy(source: trio.SocketStream, sink: trio.SocketStream) -> None:
                    async for data in source:
                        if sink is far or self.max_chunk is None:
                            await sink.send_all(data)
                            continue
                        for begin in range(0, len(data), self.max_chunk):
                            await sink.send_all(data[begin : begin + self.max_chunk])
                            await trio.sleep(0.001)  # otherwise the kernel would join the chunks
                    nursery.cancel_scope.cancel()

                nursery.start_soon(copy, near, far)
                await copy(far, near)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # one side has disconnected, so the other one is closed too
        finally:
            self.connections.discard(near)
            near.socket.close()


@pytest.fixture(scope="session")
def relayed() -> Callable[..., AbstractAsyncContextManager[RelayedServer]]:
    """`async with relayed(pipeline, app, settings) as served`: serve an application behind the relay."""

    @asynccontextmanager
    async def open_relayed(pipeline: Pipeline, app: Any, settings: ServerSettings) -> AsyncIterator[RelayedServer]:
        async with trio.open_nursery() as nursery:
            config = Config.from_settings(settings)
            config.bind = ["127.0.0.1:0"]
            urls = await nursery.start(partial(serve, app, config))
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            served = RelayedServer(pipeline, listener.socket.getsockname()[1])
            relay = partial(served.relay, int(urls[0].rsplit(":", 1)[1]))
            nursery.start_soon(trio.serve_listeners, relay, [listener])
            yield served
            nursery.cancel_scope.cancel()

    return open_relayed
