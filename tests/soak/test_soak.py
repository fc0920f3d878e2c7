"""The short form of the soak: the same program, fewer clients, two rounds and the last, always the same faults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

SHORT = ["--seconds", "1", "--clients", "30", "--controls", "5", "--warm-up", "1", "--seed", "5"]


@pytest.mark.parametrize("path", ["direct", "plain"])
async def test_load_and_faults_lose_nothing_and_leave_nothing(path: str) -> None:
    program = Path(__file__).with_name("soak.py")
    with trio.fail_after(300):
        done = await trio.run_process(
            [sys.executable, "-W", "error", str(program), *SHORT, "--path", path],
            capture_stdout=True,
            stderr=subprocess.STDOUT,
            check=False,
        )
    said = done.stdout.decode()
    print(said)
    assert done.returncode == 0, said
    assert "lost 0, repeated 0, reordered 0, otherwise wrong 0" in said
