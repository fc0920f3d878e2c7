"""The page's modules that need no page, in Node: Markdown, the check of the records, the timeline."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from crucible_trio.apis import page

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.test.mjs"))
assert SCRIPTS


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_script_passes(script: Path, need_program: Callable[[str], str]) -> None:
    environment = os.environ | {"PAGE_FOLDER": page.__path__[0]}
    done = subprocess.run(
        [need_program("node"), script], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The sign before "pass" differs between versions of Node.
    assert re.search(r"^\S+ pass [1-9]", done.stdout, re.MULTILINE), done.stdout
