"""Fixtures and settings for all tests."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

import hypothesis
import pytest
from werkzeug.routing import Rule

from .browser import chromium, relayed, running_chromium

__all__ = ["chromium", "relayed", "running_chromium"]  # fixtures

# No deadline, because the machine may be slow and shared. No database, so that a run does not depend on earlier runs.
hypothesis.settings.register_profile("crucible", deadline=None, database=None, max_examples=100)
hypothesis.settings.load_profile("crucible")


# Werkzeug compiles two functions for each route of an application, which build its URLs. That takes half the time of a
# test of an API, and few tests build a URL. So each function is compiled when it is called.
_compile_builder = Rule._compile_builder


def _compile_builder_later(rule: Rule, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
    def build(rule: Rule, /, **values: object) -> tuple[str, str]:
        return _compile_builder(rule, append_unknown)(rule, **values)

    return build


Rule._compile_builder = _compile_builder_later


# Tests with these fixtures run a browser, or clients that are not in the development environment.
FIXTURE_MARKERS = {
    "running_chromium": "browser",
    "build_page": "npm",
    "run_node": "npm",
    "run_litellm": "npm",
    "run_agent": "npm",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in FIXTURE_MARKERS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(FIXTURE_MARKERS[fixture])


def pytest_collection_finish() -> None:
    """Exempt the collected tests from garbage collection.

    Without this, each full collection looks through 7,000 tests and takes 0.2 seconds. Some tests need one.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def need_program() -> Callable[[str], str]:
    """`need_program("curl")` returns the program's path.

    If the program is missing, the test is skipped, or fails if CRUCIBLE_TESTS_SKIP_NOTHING is set.
    """

    def find(name: str) -> str:
        path = shutil.which(name)
        return path or skip_missing(f"{name} is not installed")

    return find


@pytest.fixture(scope="session")
def need_package_index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """If pip can download nothing, the test is skipped, or fails if CRUCIBLE_TESTS_SKIP_NOTHING is set."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries=1", "h11", "--dest"]
    if subprocess.run([*command, tmp_path_factory.mktemp("index")], capture_output=True, check=False).returncode:
        skip_missing("no package index can be reached")


def skip_missing(message: str) -> NoReturn:
    """Skip the test because something is not installed, or fail if CRUCIBLE_TESTS_SKIP_NOTHING is set."""
    if os.environ.get("CRUCIBLE_TESTS_SKIP_NOTHING"):
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session", name="skip_missing")
def _skip_missing() -> Callable[[str], NoReturn]:
    """`skip_missing("npm is not installed")` skips the test, or fails if CRUCIBLE_TESTS_SKIP_NOTHING is set."""
    return skip_missing
