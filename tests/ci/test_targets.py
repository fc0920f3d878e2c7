"""The Makefile and CI: which Python, which tests, which port."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def make(*arguments: str, **variables: str) -> str:
    """What make would run. It runs nothing."""
    command = ["make", "--dry-run", "--no-print-directory", f"VENV={sys.prefix}", *arguments]
    environment = {"PATH": "/usr/bin:/bin", **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def newest_python(folder: Path) -> str:
    program = [sys.executable, str(ROOT / ".ci" / "newest_python.py")]
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


@pytest.fixture
def fake_python(tmp_path: Path) -> Any:
    def write(name: str, script: str) -> str:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        return str(file)

    return write


@pytest.fixture(autouse=True)
def _needs_make(need_program: Any) -> None:
    need_program("make")


def test_serve_takes_a_port_from_the_command_line_only() -> None:
    assert make("serve", "PORT=8001").strip().endswith("crucible serve --bind 127.0.0.1:8001")
    assert make("serve", PORT="8001").strip().endswith("crucible serve")


def test_the_quick_tests_leave_out_the_slow_ones_and_other_programs() -> None:
    text = make("test-suite", "TESTS=not (slow or browser)")
    assert '-m pytest -m "not (slow or browser)"' in text
    assert '-m pytest -m "not (browser or npm or soak)"' in make("test-suite")
    quick = (ROOT / "Makefile").read_text().partition("test-quick:\n")[2].partition("\n\n")[0]
    assert 'TESTS="not (slow or browser or npm or soak)"' in quick


def test_the_lowest_versions_are_the_lower_bounds_of_the_project() -> None:
    program = [sys.executable, str(ROOT / ".ci" / "lowest_versions.py")]
    lines = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    runtime = [
        *project["dependencies"],
        *(bound for extra in ("local", "redis") for bound in project["optional-dependencies"][extra]),
    ]
    assert [line.replace("==", ">=") for line in lines] == [bound.partition(",")[0] for bound in runtime]
    assert "PIP_CONSTRAINT=" in make("test-lowest")


def test_the_newest_python_is_one_that_runs(tmp_path: Path, fake_python: Any) -> None:
    program = newest_python(tmp_path)
    assert subprocess.run([program, "-c", "import ensurepip, venv"], timeout=60, check=False).returncode == 0
    newest = fake_python("python3.98", "echo 3 98 1 final")
    fake_python("python3.97", "echo 3 97 0 final")
    fake_python("python3.99", "echo 'pyenv: python3.99: command not found' >&2; exit 127")  # like a shim of pyenv
    fake_python("python3.100", "echo 3 100 0 alpha")
    fake_python("python3.98-config", "echo 3 101 0 final")
    assert newest_python(tmp_path) == newest
    in_pyenv = fake_python(".pyenv/versions/3.99.0/bin/python3.99", "echo 3 99 0 final")
    assert newest_python(tmp_path) == in_pyenv


def test_ci_installs_the_programs_of_the_tests_and_runs_four_suites() -> None:
    file = ROOT / ".ci" / "run"
    subprocess.run(["bash", "-n", str(file)], check=True, timeout=60)
    script = file.read_text()
    for program in ("chromium", "curl", "nginx", "npm", "openssl", "redis-server", "nodejs", "python3-venv"):
        assert program in script
    suites = [
        "make test\n",
        'make test-suite PYTHON=/usr/bin/python3 VENV=.venv-debian TESTS="$quick"\n',
        "make test-quick\n",
        'make test-lowest TESTS="$quick"\n',
    ]
    assert [suite for suite in suites if suite in script] == suites
