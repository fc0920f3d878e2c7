"""Fixtures and settings for all tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import hypothesis
import pytest

# No deadline, because the machine may be slow and shared. No database, so that a run does not depend on earlier runs.
hypothesis.settings.register_profile("crucible", deadline=None, database=None, max_examples=100)
hypothesis.settings.load_profile("crucible")


# Tests with these fixtures run a browser or a client from npm.
FIXTURE_MARKERS = {"chromium": "browser", "run_node": "npm"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in FIXTURE_MARKERS.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(FIXTURE_MARKERS[fixture])


@pytest.fixture(scope="session")
def need_program() -> Callable[[str], str]:
    """`need_program("curl")` returns the program's path.

    If the program is missing, the test is skipped, or fails if CRUCIBLE_TESTS_SKIP_NOTHING is set.
    """

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            message = f"{name} is not installed"
            if os.environ.get("CRUCIBLE_TESTS_SKIP_NOTHING"):
                pytest.fail(message)
            pytest.skip(message)
        return path

    return find
