"""A connection to Redis, over a stream in memory: each command gets its own answer, or learns that there is none."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MemoryReceiveStream, MockClock, memory_stream_pair, wait_all_tasks_blocked

from crucible_trio.store.redis.connection import Connection, RedisDownError, ResponseError


@asynccontextmanager
async def open_connection() -> AsyncIterator[tuple[Connection, trio.StapledStream[Any, MemoryReceiveStream]]]:
    """A connection, and Redis' end of it."""
    ours, redis = memory_stream_pair()
    connection = Connection(ours)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            yield connection, redis
            nursery.cancel_scope.cancel()


class Call:
    """A call of its own task."""

    def __init__(self, nursery: trio.Nursery, connection: Connection, *command: str | bytes | int) -> None:
        self.answer: Any = None
        self.error: Exception | None = None
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run, partial(connection.call, *command))

    async def _run(self, call: Any) -> None:
        with self.scope:
            try:
                self.answer = await call()
            except (RedisDownError, ResponseError) as error:
                self.error = error


async def test_a_command_is_sent_as_redis_reads_it(autojump_clock: MockClock) -> None:
    async with open_connection() as (connection, redis), trio.open_nursery() as nursery:
        call = Call(nursery, connection, "SET", "ü", b"\xff", 12)
        assert await redis.receive_some() == b"*4\r\n$3\r\nSET\r\n$2\r\n\xc3\xbc\r\n$1\r\n\xff\r\n$2\r\n12\r\n"
        await redis.send_all(b"$-1\r\n")
    assert call.answer is None
    assert call.error is None


async def test_commands_that_wait_while_one_is_sent_go_together(autojump_clock: MockClock) -> None:
    async with open_connection() as (connection, redis), trio.open_nursery() as nursery:
        for name in "abc":
            Call(nursery, connection, name)
        await wait_all_tasks_blocked()
        # Tasks of one pass run in any order.
        assert sorted((await redis.receive_some()).split(b"\r\n")[2::3]) == [b"a", b"b", b"c"]
        await redis.send_all(3 * b"+OK\r\n")


@pytest.mark.parametrize("size", [1, 2, 1000])
async def test_each_command_gets_its_own_answer_however_the_bytes_arrive(autojump_clock: MockClock, size: int) -> None:
    answers = b":1\r\n*2\r\n$3\r\na\r\n\r\n*-1\r\n-ERR no \xff\r\n+OK\r\n"
    async with open_connection() as (connection, redis), trio.open_nursery() as nursery:
        calls = []
        for name in "abcd":
            calls.append(Call(nursery, connection, name))
            await wait_all_tasks_blocked()
        for start in range(0, len(answers), size):
            await redis.send_all(answers[start : start + size])
            await wait_all_tasks_blocked()
    assert [call.answer for call in calls] == [1, [b"a\r\n", None], None, b"OK"]
    assert isinstance(calls[2].error, ResponseError)
    assert calls[2].error.code == "ERR"


async def test_the_answer_to_a_cancelled_command_goes_to_no_other(autojump_clock: MockClock) -> None:
    async with open_connection() as (connection, redis), trio.open_nursery() as nursery:
        gone = Call(nursery, connection, "a")
        await wait_all_tasks_blocked()
        gone.scope.cancel()
        call = Call(nursery, connection, "b")
        await wait_all_tasks_blocked()
        await redis.send_all(b":1\r\n:2\r\n")
    assert gone.answer is None
    assert call.answer == 2


@pytest.mark.parametrize(
    ("text", "word"),
    [
        (b"OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
        (b"ERR Error running script: @user_script:1: @user_script: 1: -MISCONF Redis is configured", "MISCONF"),
        (b"READONLY You can't write against a read only replica.", "READONLY"),
        (b"ERR max number of clients reached", "max number of clients"),
    ],
)
async def test_an_error_that_may_pass_is_told_from_one_that_lasts(
    autojump_clock: MockClock, text: bytes, word: str
) -> None:
    async with open_connection() as (connection, redis), trio.open_nursery() as nursery:
        passing = Call(nursery, connection, "a")
        await wait_all_tasks_blocked()
        lasting = Call(nursery, connection, "b")
        await wait_all_tasks_blocked()
        await redis.send_all(b"-" + text + b"\r\n-NOSCRIPT No matching script.\r\n")
    assert isinstance(passing.error, RedisDownError)
    assert str(passing.error) == word
    assert isinstance(lasting.error, ResponseError)
    assert lasting.error.code == "NOSCRIPT"


async def test_a_command_without_an_answer_closes_the_connection_and_fails_all_others(
    autojump_clock: MockClock,
) -> None:
    async with open_connection() as (connection, redis), trio.open_nursery() as nursery:
        began = trio.current_time()
        long = Call(nursery, connection, "a")
        with pytest.raises(RedisDownError, match="no answer in time"):
            await connection.call("b", seconds=2)
        await wait_all_tasks_blocked()
        assert trio.current_time() == began + 2
        assert isinstance(long.error, RedisDownError)
        with pytest.raises(RedisDownError, match="the connection was closed"):
            await connection.call("c")
        assert trio.current_time() == began + 2
        await redis.receive_some()
        assert await redis.receive_some() == b""


async def test_a_command_waits_five_seconds(autojump_clock: MockClock) -> None:
    async with open_connection() as (connection, _):
        with pytest.raises(RedisDownError, match="no answer in time"):
            await connection.call("a")
        assert trio.current_time() == 5


async def test_a_lost_connection_fails_the_commands_that_wait(autojump_clock: MockClock) -> None:
    async with open_connection() as (connection, redis), trio.open_nursery() as nursery:
        calls = [Call(nursery, connection, name) for name in "ab"]
        await wait_all_tasks_blocked()
        await redis.aclose()
    assert [str(call.error) for call in calls] == ["the connection was closed"] * 2
    assert trio.current_time() == 0


@pytest.mark.parametrize("data", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b":1\r\n:2\r\n"], ids=["HTTP", "too many"])
async def test_answers_that_are_not_those_of_redis_end_the_connection(autojump_clock: MockClock, data: bytes) -> None:
    ours, redis = memory_stream_pair()
    connection = Connection(ours)
    with trio.fail_after(60), pytest.RaisesGroup(RedisDownError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            await redis.send_all(data)
    with pytest.raises(RedisDownError, match="the connection was closed"):
        await connection.call("a")
