"""The connection to Redis that is made anew whenever it breaks, over streams in memory."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from crucible_trio.errors import LogUnavailableError
from crucible_trio.store.redis.connection import RedisDownError
from crucible_trio.store.redis.link import Link


class HungServer:
    """Accepts connections, and answers nothing."""

    def __init__(self) -> None:
        self.ends: list[trio.abc.Stream] = []

    async def connect(self) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        ours, redis = memory_stream_pair()
        self.ends.append(redis)
        return ours

    def login(self) -> tuple[()]:
        return ()


class Watcher:
    async def prepare(self, call: Any) -> None:
        pass

    def failed(self, reason: str) -> None:
        pass


async def test_a_connection_that_hangs_is_replaced_before_a_call_gives_up(autojump_clock: MockClock) -> None:
    server = HungServer()
    link = Link(server, Watcher())  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        with pytest.raises(LogUnavailableError):
            await link.patient_call("PING")
        assert len(server.ends) == 2
        nursery.cancel_scope.cancel()


class Replica(HungServer):
    """Answers every command as a replica does."""

    def __init__(self, nursery: trio.Nursery) -> None:
        super().__init__()
        self._nursery = nursery

    async def connect(self) -> trio.abc.Stream:
        ours = await super().connect()
        self._nursery.start_soon(self._answer, self.ends[-1])
        return ours

    async def _answer(self, end: trio.abc.Stream) -> None:
        async with end:
            while await end.receive_some():
                await end.send_all(b"-READONLY You can't write against a read only replica.\r\n")


async def test_a_connection_to_a_server_that_became_a_replica_is_made_anew_now_and_then(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        server = Replica(nursery)
        link = Link(server, Watcher())  # type: ignore[arg-type]
        nursery.start_soon(link.run)
        for _ in range(100):  # in 10 s
            await link.opened()
            with pytest.raises(RedisDownError, match="READONLY"):
                await link.call("SET", "a", "b")
            await trio.sleep(0.1)
        assert 8 <= len(server.ends) <= 10
        nursery.cancel_scope.cancel()
