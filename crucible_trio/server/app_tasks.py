"""The tasks in which the application answers the requests of one connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, final

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.task_group import _handle as run_app
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, Scope

from crucible_trio import direct_writes, disconnects
from crucible_trio.disconnects import DisconnectListener
from crucible_trio.server.direct import SocketBodyWriter, WritableConnection


class AppConnection(WritableConnection, Protocol):
    """The part of a connection that the application's tasks use."""

    async def ask_for_body(self) -> None:
        """Tell a client that waits with its body that the application wants it."""

    def take_turn(self) -> trio.Semaphore | None:
        """The turn of the request that begins, for the caller to release. None if it has none, or has been taken."""

    async def flush_head(self) -> None:
        """Send the head of the response, if it has not been sent."""


@final
class AppTasks(TaskGroup):
    """hypercorn's task group, with a smaller queue for the ASGI events of a request and with direct writes."""

    def __init__(self, connection: AppConnection, *, offers_direct_writes: bool) -> None:
        super().__init__()
        self._connection = connection
        self._offers_direct_writes = offers_direct_writes

    async def spawn_app(
        self,
        app: AppWrapper,
        config: HypercornConfig,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Start a task that answers one request.

        Returns:
            The function that passes ASGI events to the application. It waits while the queue is full.
        """
        inbox = _Inbox(config.max_app_queue_size, self._connection)
        if scope["type"] == "http":
            scope["extensions"][disconnects.EXTENSION] = {"events": inbox}
            if self._offers_direct_writes:
                scope["extensions"][direct_writes.EXTENSION] = {"body": SocketBodyWriter(self._connection)}
        nursery = self._nursery
        assert nursery is not None

        async def send_and_flush(message: ASGISendEvent | None) -> None:
            await send(message)
            if message is not None and message["type"] == "http.response.body":
                await self._connection.flush_head()  # hypercorn sends nothing for an empty piece

        turn = self._connection.take_turn()

        async def run() -> None:
            if turn is not None:
                turn.release()  # here and not above, so that the next request begins in the next pass
            await run_app(
                app, config, scope, inbox.receive, send_and_flush, trio.to_thread.run_sync, trio.from_thread.run
            )

        nursery.start_soon(run)
        return inbox.send


@final
class _Inbox:
    """A bounded queue for one sender and one receiver (`RequestEvents`).

    A memory channel takes 1.7 KiB more of every idle stream.
    """

    __slots__ = ("_changed", "_connection", "_events", "_limit", "_listener")

    def __init__(self, limit: int, connection: AppConnection) -> None:
        self._connection = connection
        self._events: list[ASGIReceiveEvent] = []
        self._limit = limit
        self._changed = trio.lowlevel.ParkingLot()
        self._listener: DisconnectListener | None = None

    @property
    def ready(self) -> bool:
        return bool(self._events)

    def tell(self, listener: DisconnectListener) -> None:
        if self._events:
            listener.client_left()
        else:
            self._listener = listener

    # Neither has a checkpoint if it need not wait. Every event has come through the connection's read, which has one. A
    # checkpoint is a pass of the scheduler: six of them were 5 % of a start.
    async def send(self, event: ASGIReceiveEvent) -> None:
        if self._listener is not None and event["type"] == "http.disconnect":
            self._listener.client_left()
            self._listener = None
            return
        while len(self._events) >= self._limit:
            await self._changed.park()
        self._events.append(event)
        self._changed.unpark_all()

    async def receive(self) -> ASGIReceiveEvent:
        if not self._events:
            await self._connection.ask_for_body()
        while not self._events:
            await self._changed.park()
        self._changed.unpark_all()
        return self._events.pop(0)
