"""A short soak test: the same program with fewer clients, two rounds and the last one, and always the same faults."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import trio

pytestmark = [pytest.mark.slow, pytest.mark.soak]

SHORT = ["--seconds", "1", "--clients", "30", "--controls", "5", "--warm-up", "1", "--seed", "5"]


@pytest.mark.parametrize("path", ["direct", "plain"])
async def test_load_and_faults_lose_no_record_and_leak_nothing(path: str) -> None:
    program = Path(__file__).with_name("soak.py")
    with trio.fail_after(300):
        done = await trio.run_process(
            [sys.executable, "-W", "error", str(program), *SHORT, "--path", path],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    output = done.stdout.decode()
    print(output)
    assert done.returncode == 0, output
    assert "lost 0, repeated 0, reordered 0, other errors 0" in output


@pytest.mark.redis
async def test_readers_that_change_between_processes_that_die_lose_no_record(
    need_program: Callable[[str], str], skip_missing: Callable[[str], None]
) -> None:
    need_program("redis-server")
    if find_spec("hiredis") is None:
        skip_missing("hiredis is not installed")
    program = Path(__file__).with_name("processes.py")
    short = ["--seconds", "8", "--processes", "2", "--readers", "20", "--kills", "1", "--retention", "8", "--seed", "5"]
    with trio.fail_after(300):
        done = await trio.run_process(
            [sys.executable, "-W", "error", str(program), *short],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    output = done.stdout.decode()
    print(output)
    assert done.returncode == 0, output
    assert "lost 0, repeated 0, reordered 0, other errors 0" in output
