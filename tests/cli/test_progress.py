"""The progress bar of the model's download ends on a line of its own."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from contextlib import suppress

import pytest

from crucible_trio.cli.progress import fetch_progress

TOTAL = 92_871_040


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)


def open_log() -> logging.StreamHandler:
    """Writes as the commands' log does: to the standard error from before rich replaced it."""
    return logging.StreamHandler(sys.stderr)


def emit(log: logging.StreamHandler) -> None:
    log.handle(logging.makeLogRecord({"msg": "model small: loaded"}))


def screen(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines that a user sees. A carriage return begins a line anew."""
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    return [line.rstrip("\r ").rpartition("\r")[2] for line in text.removesuffix("\n").split("\n")]


@pytest.mark.usefixtures("terminal")
def test_the_whole_bar_stays_and_the_next_log_line_begins_below_it(capsys) -> None:
    log = open_log()
    with fetch_progress() as progress:
        progress(0, TOTAL)
        progress(TOTAL - 1, TOTAL)
        progress(TOTAL, TOTAL)
        emit(log)  # the model is loaded inside the block
    bar, line = screen(capsys)
    assert bar.startswith("downloading the model ━")
    assert "92.9/92.9 MB" in bar
    assert line == "model small: loaded"


@pytest.mark.usefixtures("terminal")
def test_a_bar_of_a_failed_download_also_ends_on_its_line(capsys) -> None:
    log = open_log()
    with suppress(OSError), fetch_progress() as progress:
        progress(30_000_000, TOTAL)
        raise OSError("offline")
    emit(log)
    bar, line = screen(capsys)
    assert "30.0/92.9 MB" in bar
    assert line == "model small: loaded"


@pytest.mark.usefixtures("terminal")
def test_nothing_is_drawn_without_a_download(capsys) -> None:
    log = open_log()
    with fetch_progress():
        emit(log)
    assert screen(capsys) == ["model small: loaded"]


@pytest.mark.parametrize("variables", [{}, {"FORCE_COLOR": "1", "TERM": "dumb"}], ids=["file", "dumb terminal"])
def test_without_a_terminal_that_draws_there_is_one_line(capsys, monkeypatch, variables) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    log = open_log()
    with fetch_progress() as progress:
        progress(0, TOTAL)
        progress(TOTAL, TOTAL)
        emit(log)
    assert screen(capsys) == ["downloading the model (93 MB, only once) ...", "model small: loaded"]


@pytest.mark.parametrize("module", ["worker", "workers"])
def test_servers_do_not_keep_the_memory_of_what_draws_the_bar(module) -> None:
    program = f"import sys, crucible_trio.cli.{module}; sys.exit('rich' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
