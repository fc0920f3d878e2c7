"""The supervisor of several workers. The workers are real processes that run `small_worker.py`."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from crucible_trio.errors import ConfigError
from crucible_trio.server import supervisor as module
from crucible_trio.server.supervisor import Supervisor

pytestmark = pytest.mark.slow

WORKER = [sys.executable, str(Path(__file__).parent / "small_worker.py")]


@dataclass
class Supervised:
    supervisor: Supervisor
    port: int
    message: str = ""
    code: int | None = None
    ended: trio.Event = field(default_factory=trio.Event)

    async def ask(self, line: str = "who") -> Any:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            await stream.send_all(f"{line}\n".encode())
            return json.loads(b"".join([data async for data in stream]))

    async def pid_of(self, number: int) -> int:
        while (answer := await self.ask())[0] != number:
            pass
        return int(answer[2])


Supervising = Callable[..., Any]


@pytest.fixture
def supervising(tmp_path: Path) -> Supervising:
    """`async with supervising("serve", ["serve", "exit 1"]) as supervised`: one plan for each worker."""

    @asynccontextmanager
    async def start(*plans: str | list[str], drain_seconds: float = 30.0) -> AsyncIterator[Supervised]:
        workers = [[plan] if isinstance(plan, str) else plan for plan in plans]
        plan = json.dumps({"folder": str(tmp_path), "workers": workers}).encode()
        with socket.create_server(("127.0.0.1", 0)) as sock:
            sock.setblocking(False)
            supervisor = Supervisor(WORKER, len(plans), sockets=[sock], settings=plan, drain_seconds=drain_seconds)
            supervised = Supervised(supervisor, sock.getsockname()[1])

            async def run(*, task_status: trio.TaskStatus[str]) -> None:
                supervised.code = await supervisor.run(task_status=task_status)
                supervised.ended.set()

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    supervised.message = await nursery.start(run)
                    yield supervised
                    supervisor.drain()

    return start


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers are started again without delay."""
    monkeypatch.setattr(module, "_FIRST_DELAY_SECONDS", 0.0)


async def test_all_workers_serve_one_address_and_a_drain_ends_them(supervising: Supervising) -> None:
    async with supervising("serve", "serve") as supervised:
        assert supervised.message == "worker 1 serves"
        pids = [await supervised.pid_of(number) for number in (1, 2)]
        assert pids[0] != pids[1]
        assert [os.getpgid(pid) for pid in pids] == pids  # a terminal's Ctrl-C reaches only the supervisor
        supervised.supervisor.drain()
        await supervised.ended.wait()
        with pytest.raises(OSError, match="all attempts"):
            await supervised.ask()
    assert supervised.code == 0


async def test_the_start_is_over_when_all_workers_are_ready(supervising: Supervising, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    started = trio.Event()

    async def start() -> None:
        async with supervising("serve", f"wait {pipe}"):
            started.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        writer = await trio.to_thread.run_sync(lambda: pipe.open("wb"))  # waits for the worker
        assert not started.is_set()
        writer.close()
        with trio.fail_after(30):
            await started.wait()


async def test_a_worker_that_is_killed_is_replaced_and_no_connection_is_refused(supervising: Supervising) -> None:
    async with supervising("serve") as supervised:
        [_, _, pid] = await supervised.ask()
        os.kill(pid, signal.SIGKILL)
        # No worker lives now, or one that has not started yet. The connection waits in the queue of the socket.
        [number, life, new_pid] = await supervised.ask()
        assert (number, life) == (1, 1)
        assert new_pid != pid
    assert supervised.code == 0


async def test_a_worker_that_cannot_be_ready_at_the_first_start_ends_the_command_with_its_code(
    supervising: Supervising, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising("serve", "exit 7") as supervised:
        await supervised.ended.wait()
        assert supervised.message == ""
    assert supervised.code == 7
    assert "worker 2 ended with exit code 7 before it was ready: stopping" in caplog.text


async def test_a_refusal_of_all_workers_is_one_error(
    supervising: Supervising, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="^model must be a file$")):
        async with supervising("refuse model must be a file", "refuse model must be a file") as supervised:
            await supervised.ended.wait()
    assert "model" not in caplog.text


@pytest.mark.usefixtures("at_once")
async def test_a_worker_that_dies_at_its_start_again_and_again_ends_the_command(
    supervising: Supervising, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_MOST_FAILED_STARTS", 3)
    async with supervising("serve", ["serve", "exit 7"]) as supervised:
        os.kill(await supervised.pid_of(2), signal.SIGKILL)
        await supervised.ended.wait()
    assert supervised.code == 7
    assert "worker 2 was killed by SIGKILL: starting it again" in caplog.text
    assert "worker 2 ended with exit code 7 before it was ready, 3 times in a row: stopping" in caplog.text


@pytest.mark.usefixtures("at_once")
async def test_a_start_that_succeeds_in_the_end_is_forgiven(
    supervising: Supervising, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_FAILED_STARTS", 3)
    async with supervising(["serve", "exit 7", "refuse no log", "serve", "exit 7", "exit 7", "serve"]) as supervised:
        for life in (3, 6):
            os.kill(await supervised.pid_of(1), signal.SIGKILL)
            assert (await supervised.ask())[1] == life
    assert supervised.code == 0


async def test_no_process_at_the_first_start_is_an_error_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock, trio.fail_after(30):
        supervisor = Supervisor(["/no/such/program"], 2, sockets=[sock], settings=b"", drain_seconds=10)
        with pytest.raises(ConfigError, match=r"^no process can be started: No such file or directory$"):
            await supervisor.run()


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("is_back", [True, False])
async def test_a_machine_that_cannot_start_a_process_for_a_while_does_not_end_the_other_workers(
    tmp_path: Path,
    supervising: Supervising,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_back: bool,
) -> None:
    program = tmp_path / "program"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(WORKER)} "$@"\n')
    program.chmod(0o700)
    monkeypatch.setitem(globals(), "WORKER", [str(program)])
    monkeypatch.setattr(module, "_MOST_FAILED_STARTS", 1_000_000 if is_back else 3)
    failed = "worker 2 cannot start (no process can be started: No such file or directory)"
    async with supervising("serve", "serve") as supervised:
        pid = await supervised.pid_of(2)
        program.rename(tmp_path / "away")
        os.kill(pid, signal.SIGKILL)
        if is_back:
            while f"{failed}: starting it again" not in caplog.text:
                assert (await supervised.ask())[0] == 1
            (tmp_path / "away").rename(program)
            assert await supervised.pid_of(2) != pid
        else:
            await supervised.ended.wait()
            assert f"{failed}: starting it again" in caplog.text
            assert f"{failed} before it was ready, 3 times in a row: stopping" in caplog.text
    assert supervised.code == (0 if is_back else 1)


async def test_after_a_long_life_a_worker_is_started_again_without_delay(
    supervising: Supervising, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_LONG_LIFE_SECONDS", 0.0)  # so every life is long
    async with supervising("serve") as supervised:
        for _ in range(3):
            os.kill(await supervised.pid_of(1), signal.SIGKILL)
            await supervised.ask()
    lines = [record.getMessage() for record in caplog.records if "starting it again" in record.getMessage()]
    assert [line.rpartition("again")[2] for line in lines] == ["", "", ""]


async def test_a_drain_does_not_wait_for_the_next_start(
    supervising: Supervising, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_FIRST_DELAY_SECONDS", 1000.0)
    monkeypatch.setattr(module, "_LONGEST_DELAY_SECONDS", 1000.0)
    async with supervising("serve", "serve") as supervised:
        pid = await supervised.pid_of(2)
        os.kill(pid, signal.SIGKILL)
        while (next_pid := await supervised.pid_of(2)) == pid:
            pass
        os.kill(next_pid, signal.SIGKILL)
        while "starting it again in 1000 s" not in caplog.text:
            assert (await supervised.ask())[0] == 1
        supervised.supervisor.drain()
        await supervised.ended.wait()
    assert supervised.code == 0


async def test_each_early_end_doubles_the_delay(
    supervising: Supervising, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_FIRST_DELAY_SECONDS", 0.01)
    monkeypatch.setattr(module, "_LONGEST_DELAY_SECONDS", 0.02)
    async with supervising("serve") as supervised:
        for _ in range(4):
            os.kill(await supervised.pid_of(1), signal.SIGKILL)
            await supervised.ask()
    lines = [record.getMessage() for record in caplog.records if "starting it again" in record.getMessage()]
    assert [line.rpartition("again")[2] for line in lines] == ["", " in 0.01 s", " in 0.02 s", " in 0.02 s"]


@pytest.mark.parametrize("moment", ["before its start", "in its start"])
async def test_a_worker_is_told_of_a_drain_that_began_before_it(tmp_path: Path, moment: str) -> None:
    plan = json.dumps({"folder": str(tmp_path), "workers": [["serve"]]}).encode()
    codes: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as sock:
        supervisor = Supervisor(WORKER, 1, sockets=[sock], settings=plan, drain_seconds=10)

        async def run() -> None:
            codes.append(await supervisor.run())

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                if moment == "in its start":
                    await wait_all_tasks_blocked()
                supervisor.drain()
    assert codes == [0]
    assert bool(os.listdir(tmp_path)) == (moment == "in its start")  # whether a process lived


async def test_the_sockets_stay_open_while_a_process_that_inherits_them_starts(
    supervising: Supervising, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_starting, may_start = trio.Event(), trio.Event()
    run_process = trio.run_process
    inherited: list[int] = []

    async def wait_and_run(*args: Any, pass_fds: list[int], **options: Any) -> None:
        is_starting.set()
        await may_start.wait()
        inherited.extend(os.fstat(number).st_ino for number in pass_fds)  # OSError if one is closed
        await run_process(*args, pass_fds=pass_fds, **options)

    async with supervising("serve") as supervised:
        pid = await supervised.pid_of(1)
        monkeypatch.setattr(trio, "run_process", wait_and_run)
        os.kill(pid, signal.SIGKILL)
        await is_starting.wait()
        supervised.supervisor.drain()
        await wait_all_tasks_blocked()
        may_start.set()
        await supervised.ended.wait()
    assert len(inherited) == 2  # the link and the socket
    assert supervised.code == 0


async def test_a_stop_ends_the_workers_immediately_with_code_1(supervising: Supervising) -> None:
    async with supervising("serve", "deaf") as supervised:
        supervised.supervisor.drain()
        await wait_all_tasks_blocked()
        assert not supervised.ended.is_set()
        supervised.supervisor.stop()
        await supervised.ended.wait()
    assert supervised.code == 1


async def test_a_worker_that_does_not_drain_in_time_is_killed(
    supervising: Supervising, caplog: pytest.LogCaptureFixture
) -> None:
    async with supervising("serve", "deaf", drain_seconds=0.1) as supervised:
        supervised.supervisor.drain()
        await supervised.ended.wait()
    assert supervised.code == 1
    assert "killing the workers that have not ended in time" in caplog.text


async def test_metrics_are_those_of_all_workers(supervising: Supervising, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COUNT_SECONDS", 30.0)
    async with supervising("serve", "serve") as supervised:
        await supervised.pid_of(1)
        before = await supervised.ask("metrics")
        after = await supervised.ask("metrics")
    assert after["lines_total"] == before["lines_total"] + 1
    assert after["lives"] == 2
    assert after["up"] == 0  # the lowest, not the sum
    assert (after["crucible_workers"], after["crucible_workers_answering"]) == (2, 2)
    assert after["crucible_worker_restarts_total"] == 0


async def test_the_counters_of_a_worker_that_has_ended_stay_in_the_sum(supervising: Supervising) -> None:
    async with supervising("serve") as supervised:
        [_, _, pid] = await supervised.ask()
        before = await supervised.ask("metrics")
        os.kill(pid, signal.SIGKILL)
        after = await supervised.ask("metrics")
    assert before["lines_total"] == 2
    assert after["lines_total"] == 3  # one in its second life
    assert after["lives"] == 1
    assert after["crucible_worker_restarts_total"] == 1


async def test_a_worker_that_does_not_answer_is_left_out_but_its_counters_stay(
    supervising: Supervising, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_COUNT_SECONDS", 30.0)
    async with supervising("serve", "serve") as supervised:
        pid = await supervised.pid_of(2)
        before = await supervised.ask("metrics")
        monkeypatch.setattr(module, "_COUNT_SECONDS", 0.05)
        os.kill(pid, signal.SIGSTOP)
        try:
            silent = await supervised.ask("metrics")
        finally:
            os.kill(pid, signal.SIGCONT)
        while (again := await supervised.ask("metrics"))["crucible_workers_answering"] < 2:
            pass
    assert silent["lines_total"] == before["lines_total"] + 1
    assert silent["crucible_workers_answering"] == 1
    assert silent["lives"] == 1
    assert again["lives"] == 2
