"""What several folders of tests share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

import hypothesis
import pytest

# The machine may be shared and slow: an example is never too late. No database: a run depends on nothing left behind.
hypothesis.settings.register_profile("crucible", deadline=None, database=None, max_examples=100)
hypothesis.settings.load_profile("crucible")


@pytest.fixture(scope="session")
def need_program() -> Callable[[str], str]:
    """`need_program("curl")` gives its path; a test that needs a missing one skips, or fails where none may skip."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            message = f"{name} is not installed"
            if os.environ.get("CRUCIBLE_TESTS_SKIP_NOTHING"):
                pytest.fail(message)
            pytest.skip(message)
        return path

    return find
