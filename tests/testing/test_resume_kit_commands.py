"""The resume kit as a command and in pytest: child processes that check a small server in this process."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import trio

from crucible_trio.testing.resume import load_wire

pytestmark = pytest.mark.slow

PLUGIN = "crucible_trio_pytest"
PAGE = Path(__file__).parents[2] / "docs" / "howto" / "check.md"


def example(language: str, containing: str) -> str:
    found = re.findall(rf"```{{code-block}} {language}\n(.*?)```\n", PAGE.read_text("utf-8"), re.DOTALL)
    [text] = [text for text in found if containing in text]
    return text


async def run(*words: str, cwd: Path) -> tuple[int, str]:
    with trio.fail_after(120):
        done = await trio.run_process(
            [sys.executable, *words], cwd=cwd, capture_stdout=True, stderr=subprocess.STDOUT, check=False
        )
    return done.returncode, done.stdout.decode()


async def crucible(*words: str, cwd: Path) -> tuple[int, str]:
    return await run("-c", "from crucible_trio.cli import main; main()", *words, cwd=cwd)


async def run_pytest(*words: str, cwd: Path) -> tuple[int, str]:
    is_installed = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
    plugin = [] if is_installed else ["-p", PLUGIN]
    return await run("-m", "pytest", "-W", "error", "-p", "no:cacheprovider", *plugin, *words, cwd=cwd)


@pytest.fixture
def wire_file(tmp_path: Path) -> Path:
    """The example wire of the page, which describes the small server."""
    file = tmp_path / "wire.toml"
    file.write_text(example("toml", "/runs"))
    return file


def test_the_pages_wire_is_the_small_servers(wire_file: Path, open_small_server: Any) -> None:
    async def wire() -> Any:
        async with open_small_server() as server:
            return server.wire

    assert load_wire(wire_file) == trio.run(wire)


async def test_the_command_passes_a_good_server(open_small_server: Any, wire_file: Path) -> None:
    async with open_small_server() as server:
        words = ("check", server.url, "--wire", str(wire_file), "--log-cuts", "30", "--live-cuts", "6", "--seed", "7")
        code, said = await crucible(*words, cwd=wire_file.parent)
    assert code == 0, said
    assert f"checked {server.url} (seed 7)" in said
    assert re.search(r"^from the log  fetch        30 cuts, ok", said, re.MULTILINE)
    assert "passed: no event was lost or repeated" in said


async def test_the_command_fails_a_bad_server_and_tells_how_to_repeat_the_failure(
    open_small_server: Any, wire_file: Path
) -> None:
    async with open_small_server("ignores ids") as server:
        wire = ("--wire", str(wire_file))
        code, said = await crucible(
            "check", server.url, *wire, "--log-cuts", "20", "--live-cuts", "4", cwd=wire_file.parent
        )
        assert code == 1, said
        assert "FAIL ids ignored: " in said
        [command, *_] = re.findall(r"repeat: crucible (.*)", said)
        code, said = await crucible(*command.split(), cwd=wire_file.parent)
    assert code == 1
    assert "1 cut, 1 failed" in said


async def test_the_command_takes_several_addresses_of_one_service(open_small_server: Any, wire_file: Path) -> None:
    async with open_small_server() as one, open_small_server() as other:
        other.runs = one.runs
        words = ("check", one.url, other.url, "--wire", str(wire_file), "--log-cuts", "30", "--live-cuts", "6")
        code, said = await crucible(*words, cwd=wire_file.parent)
    assert code == 0, said
    assert f"checked {one.url}, {other.url} (seed 0)" in said
    [[first, second]] = re.findall(r"^connections: ([\d,]+) to \S+, ([\d,]+) to \S+$", said, re.MULTILINE)
    assert int(first) >= 100
    assert int(second) >= 100


async def test_the_command_reports_a_server_that_it_cannot_check(open_small_server: Any, wire_file: Path) -> None:
    async with open_small_server() as server:
        code, said = await crucible("check", server.url, cwd=wire_file.parent)  # with the default wire
        assert code == 2, said
        assert "could not check: no event has text where the wire expects it" in said
    code, said = await crucible("check", "https://localhost", cwd=wire_file.parent)
    assert (code, "not an http:// URL" in said) == (2, True)
    code, said = await crucible("check", server.url, "--wire", "nowhere.toml", cwd=wire_file.parent)
    assert (code, "cannot read the wire file" in said) == (2, True)


async def test_pytest_makes_a_test_of_each_url(open_small_server: Any, wire_file: Path) -> None:
    async with open_small_server() as good, open_small_server("skips one") as bad:
        words = ("--check-resume", good.url, "--check-resume", bad.url, "--check-resume-wire", str(wire_file))
        code, said = await run_pytest(*words, "--check-resume-log-cuts", "30", "-v", cwd=wire_file.parent)
    assert code == 1, said
    assert f"check-resume[{good.url}] PASSED" in said
    assert f"check-resume[{bad.url}] FAILED" in said
    assert "FAIL off by one on resume: " in said
    assert f"repeat: crucible check {bad.url} --wire {wire_file} --phase log " in said
    assert "Traceback" not in said


async def test_the_pages_test_passes_and_can_fail(tmp_path: Path) -> None:
    source = example("python", "async def test_").replace("_cuts=100", "_cuts=10")
    (tmp_path / "pytest.ini").write_text("[pytest]\ntrio_mode = true\n")
    file = tmp_path / "test_example.py"
    file.write_text(source)
    code, said = await run_pytest(cwd=tmp_path)
    assert code == 0, said
    assert "1 passed" in said
    file.write_text(source.replace("range(60)", "range(3)"))
    code, said = await run_pytest(cwd=tmp_path)
    assert code == 1, said
    assert "the stream is too short" in said
