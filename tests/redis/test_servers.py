"""Which Redis servers can be used, and how they are reached."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio

from crucible_trio.errors import ConfigError, LogUnavailableError
from crucible_trio.pipeline import Pipeline
from crucible_trio.request import Request
from crucible_trio.store.redis.address import RedisAddress, parse_url
from crucible_trio.store.redis.checks import problem_with
from crucible_trio.testing import Gate, ScriptedEngine

OpenPipeline: TypeAlias = Callable[..., AbstractAsyncContextManager[Pipeline]]
Until: TypeAlias = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://localhost", RedisAddress("localhost", 6379, None, 0, None, None, False)),
        ("redis://127.0.0.1:7000/3", RedisAddress("127.0.0.1", 7000, None, 3, None, None, False)),
        ("rediss://me:p%40ss@host:1/", RedisAddress("host", 1, None, 0, "me", "p@ss", True)),
        ("redis://:word@[::1]:2/0", RedisAddress("::1", 2, None, 0, None, "word", False)),
        ("unix:///run/redis%20.sock", RedisAddress("", 6379, "/run/redis .sock", 0, None, None, False)),
        ("unix://:word@/run/r.sock?db=2", RedisAddress("", 6379, "/run/r.sock", 2, None, "word", False)),
    ],
)
def test_a_url_is_understood(url: str, expected: RedisAddress) -> None:
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "localhost:6379",
        "http://secret@localhost",
        "redis://",
        "redis://:secret@/0",
        "redis://secret:99999",
        "redis://secret/x",
        "redis://secret/0?db=1",
        "redis://secret/0#x",
        "redis://[secret",
        "unix://",
        "unix:///secret?x=1",
        "unix:///secret%00",
    ],
)
def test_a_wrong_url_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_url(url)
    assert "secret" not in str(refusal.value)
    assert refusal.value.settings == ("log_url",)
    assert refusal.value.__cause__ is None


@pytest.mark.parametrize(
    ("info", "mentions"),
    [
        ({"redis_version": "6.0.16"}, "6.0.16"),
        ({"redis_version": "6.2.0", "cluster_enabled": "1"}, "cluster-enabled"),
        ({"redis_version": "unknown"}, "unknown"),
        ({"redis_version": "8.0-m01"}, None),
        ({"redis_version": "7.0.15", "role": "slave"}, "replica"),
        ({"redis_version": "7.2.4", "maxmemory_policy": "volatile-ttl"}, "maxmemory-policy is volatile-ttl"),
        ({"redis_version": "7.2.4", "maxmemory_policy": "noeviction", "role": "master"}, None),
        ({"redis_version": "6.2.0"}, None),
    ],
)
def test_a_server_that_would_lose_streams_is_refused(info: dict[str, str], mentions: str | None) -> None:
    problem = problem_with(info)
    assert problem is None if mentions is None else mentions in (problem or "")


@pytest.mark.parametrize(
    ("options", "login"),
    [
        (["--requirepass", "p@ss word"], ":p%40ss%20word@"),
        (["--requirepass", "p@ss word"], "default:p%40ss%20word@"),
        (["--requirepass", "p@ss word", "--user", "me", "on", ">my word", "~*", "&*", "+@all"], "me:my%20word@"),
        ([], ":no%20password%20is%20needed@"),
    ],
)
async def test_a_user_and_a_password_are_sent(
    new_redis: Callable[..., Any], open_over: OpenPipeline, options: list[str], login: str
) -> None:
    redis = new_redis(*options)
    async with open_over(ScriptedEngine("a"), url=f"redis://{login}127.0.0.1:{redis.port}/0") as pipeline:
        await pipeline.start(Request("q"))


@pytest.mark.parametrize(
    ("login", "database", "mentions"),
    [
        (":wrong@", 0, "Authentication failed: this Redis does not accept the user or the password"),
        ("nobody:secret@", 0, "Authentication failed: this Redis does not accept the user or the password"),
        ("", 0, "Authentication required: log_url has no password"),
        (":secret@", 2, "no database with the number in log_url"),
        ("poor:secret@", 0, "may not run a command that is needed"),
    ],
)
async def test_a_login_that_redis_refuses_is_reported_at_once(
    new_redis: Callable[..., Any],
    open_over: OpenPipeline,
    monkeypatch: pytest.MonkeyPatch,
    login: str,
    database: int,
    mentions: str,
) -> None:
    monkeypatch.setattr("crucible_trio.store.redis.checks._FIRST_CONNECT_SECONDS", inf)
    redis = new_redis("--requirepass", "secret", "--databases", "2", "--user", *["poor", "on", ">secret", "+select"])
    with pytest.raises(ConfigError, match=mentions) as refusal:
        async with open_over(ScriptedEngine("a"), url=f"redis://{login}127.0.0.1:{redis.port}/{database}"):
            pass
    assert refusal.value.settings == ("log_url",)
    for word in ("secret", "wrong", str(redis.port)):
        assert word not in str(refusal.value)


async def test_a_setting_that_an_operator_changes_is_reported_when_the_connection_is_made_again(
    redis: Any, open_over: OpenPipeline, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_over(ScriptedEngine("a")) as pipeline:
        redis.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        for lost in (1, 2):
            redis.command("CLIENT", "KILL", "TYPE", "normal")
            await until(lambda lost=lost: pipeline.store.failures >= 2 * lost)
            await pipeline.start(Request("q"))
        await until(lambda: "may lose streams" in caplog.text)
        assert caplog.text.count("maxmemory-policy is allkeys-lru") == 1


async def test_a_unix_socket_is_used(new_redis: Callable[..., Any], open_over: OpenPipeline, tmp_path: Path) -> None:
    new_redis("--unixsocket", str(tmp_path / "r.sock"))
    async with open_over(ScriptedEngine("a"), url=f"unix://{tmp_path}/r.sock?db=1") as pipeline:
        await pipeline.start(Request("q"))


@pytest.mark.parametrize("host", ["127.0.0.1", "not..a-host"])
async def test_where_nothing_listens_the_start_fails(
    redis: Any, open_over: OpenPipeline, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    monkeypatch.setattr("crucible_trio.store.redis.checks._FIRST_CONNECT_SECONDS", 0.3)
    redis.kill()
    with pytest.raises(ConfigError, match="nothing listens there") as refusal:
        async with open_over(ScriptedEngine("a"), url=f"redis://{host}:{redis.port}/0"):
            pass
    assert str(redis.port) not in str(refusal.value)


async def test_a_server_without_tls_is_reported(open_over: OpenPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.send_all(b"-ERR unknown command\r\n")

    monkeypatch.setattr("crucible_trio.store.redis.checks._FIRST_CONNECT_SECONDS", 0.5)
    async with trio.open_nursery() as nursery:
        listeners: Any = await nursery.start(partial(trio.serve_tcp, answer, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(ConfigError, match="TLS failed: does this port speak TLS"):
            async with open_over(ScriptedEngine("a"), url=f"rediss://127.0.0.1:{port}/0"):
                pass
        nursery.cancel_scope.cancel()


async def test_tls_verifies_the_server(
    new_redis: Callable[..., Any],
    open_over: OpenPipeline,
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    key, public = certificate
    redis = new_redis(
        *("--tls-port", "0", "--tls-cert-file", str(public), "--tls-key-file", str(key)),
        *("--tls-ca-cert-file", str(public), "--tls-auth-clients", "no"),
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert redis.command("CONFIG", "SET", "tls-port", str(port)) == "+OK"
    url = f"rediss://127.0.0.1:{port}/0"
    monkeypatch.setattr("crucible_trio.store.redis.checks._FIRST_CONNECT_SECONDS", inf)
    with pytest.raises(ConfigError, match="certificate of this Redis is not accepted"):
        async with open_over(ScriptedEngine("a"), url=url):
            pass
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    monkeypatch.setattr("crucible_trio.store.redis.checks._FIRST_CONNECT_SECONDS", 30)
    async with open_over(ScriptedEngine("a"), url=url) as here, open_over(ScriptedEngine("a"), url=redis.url) as there:
        stream = await here.start(Request("q"), on_disconnect="continue")
        await stream.log.wait_finished()
        assert (await there.find(stream.id)).log.read(0) == stream.log.read(0)


def test_a_worker_takes_little_more_memory_than_a_server_without_redis() -> None:
    program = """
import crucible_trio.cli.worker
def memory():
    with open("/proc/self/smaps_rollup") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("Rss"))
without = memory()
import crucible_trio.store.redis.store
print(memory() / without)
"""
    ratio = float(subprocess.check_output([sys.executable, "-c", program], timeout=60))
    assert 1 < ratio < 1.1


# Versions of this package next to each other


async def test_a_stream_with_a_newer_schema_is_refused_for_now(redis: Any, open_over: OpenPipeline) -> None:
    async with open_over(ScriptedEngine("a", Gate())) as here, open_over(ScriptedEngine("a")) as there:
        stream = await here.start(Request("q"), on_disconnect="continue")
        redis.command("HSET", f"{{crucible:{stream.id}}}:meta", "schema", "2")
        for _ in range(2):
            with pytest.raises(LogUnavailableError, match="newer version"):
                await there.find(stream.id)
        assert await there.list() == []


async def test_records_of_a_later_version_are_passed_on_as_bytes(open_over: OpenPipeline) -> None:
    async with open_over(ScriptedEngine("a", Gate(), "b")) as here, open_over(ScriptedEngine("a")) as there:
        stream = await here.start(Request("q"), on_disconnect="continue")
        await stream.log.reached(2)
        found = await there.find(stream.id)
        log: Any = stream.log
        later = f'data: {{"type":"stream.poked","seq":3,"by":"x"}}\nid: {stream.id}.3\n\n'.encode()
        log.append_nowait([later])
        async with found.attach(2) as reader:
            assert (await anext(reader)).seq == 3
        assert found.log.read(2) == [later]
        assert found.snapshot().output == "a"
        assert found.snapshot().last_seq == 3
