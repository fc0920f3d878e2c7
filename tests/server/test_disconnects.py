"""The extension with which the server tells an application that its client has left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio import Finish, Output, Request, open_pipeline
from crucible_trio.disconnects import EXTENSION, DisconnectListener
from crucible_trio.server.app_tasks import AppTasks
from crucible_trio.web import create_app


class Connection:
    """The part of a connection that a request's events use."""

    current_request = object()

    async def ask_for_body(self) -> None:
        pass

    def take_turn(self) -> None:
        return None


class Listener:
    """Counts how often it was told."""

    def __init__(self) -> None:
        self.told = 0

    def client_left(self) -> None:
        self.told += 1


Put = Callable[[Any], Awaitable[None]]
DISCONNECT = {"type": "http.disconnect"}


async def put_events_while(app: Callable[[Any, Any], Awaitable[None]], act: Callable[[Put], Awaitable[None]]) -> None:
    """Run an application with the server's own queue of events."""

    class Config:
        max_app_queue_size = 4

    async def wrapped(scope: Any, receive: Any, send: Any, *_: object) -> None:
        await app(scope["extensions"][EXTENSION]["events"], receive)

    async def send(message: object) -> None:
        pass

    async with AppTasks(Connection(), offers_direct_writes=False) as tasks:  # type: ignore[arg-type]
        put = await tasks.spawn_app(wrapped, Config(), {"type": "http", "extensions": {}}, send)  # type: ignore[arg-type]
        await act(put)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_listener_is_told_once_whenever_the_client_leaves(when: str) -> None:
    listener = Listener()
    left = trio.Event()

    async def app(events: Any, receive: Any) -> None:
        assert events.ready
        assert (await receive())["type"] == "http.request"
        assert events.ready == (when == "before")
        events.tell(listener)
        await left.wait()

    async def act(put: Put) -> None:
        await put({"type": "http.request", "body": b"", "more_body": False})
        if when == "before":
            await put(DISCONNECT)
        await wait_all_tasks_blocked()
        assert listener.told == (when == "before")
        if when == "after":
            await put(DISCONNECT)
            await put(DISCONNECT)
        assert listener.told == 1
        left.set()

    with trio.fail_after(5):
        await put_events_while(app, act)


async def test_without_a_listener_the_disconnect_is_an_event() -> None:
    seen: list[str] = []

    async def app(events: Any, receive: Any) -> None:
        seen.append((await receive())["type"])

    with trio.fail_after(5):
        await put_events_while(app, lambda put: put(DISCONNECT))
    assert seen == ["http.disconnect"]


async def silent(request: Request, output: Output) -> Finish:
    await trio.sleep_forever()
    return Finish()


async def test_a_request_is_not_cancelled_while_it_sends_its_own_end(autojump_clock: MockClock) -> None:
    """The server says that the client has left when it has the complete response, in the middle of the last `send`."""
    sent: list[Any] = []

    class Events:
        ready = True

        def tell(self, listener: DisconnectListener) -> None:
            self.listener = listener

    events = Events()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            events.listener.client_left()
        await trio.lowlevel.checkpoint()
        sent.append(message)

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/healthz",
        "raw_path": b"/healthz",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1")],
        "extensions": {EXTENSION: {"events": events}},
    }
    async with open_pipeline(silent) as pipeline:
        with trio.fail_after(5):
            await create_app(pipeline)(scope, receive, send)
    assert sent[0]["type"] == "http.response.start"
    assert sent[-1]["type"] == "http.response.body"
    assert not sent[-1].get("more_body", False)
