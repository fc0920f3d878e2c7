"""The pytest plugin costs projects that do not use it nothing: pytest loads it, and it loads nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import trio

ROOT = Path(__file__).parents[2]
PLUGIN = "crucible_trio_pytest"

# Collects nothing in an empty folder, then prints the names of all loaded modules.
PROGRAM = """
import json, sys, pytest
code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[1:]])
assert code == pytest.ExitCode.NO_TESTS_COLLECTED
print(json.dumps(sorted(sys.modules)))
"""


async def loaded_modules(*words: str, cwd: Path) -> set[str]:
    # Without the plugins of this environment, some of which import trio.
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    with trio.fail_after(60):
        done = await trio.run_process(
            [sys.executable, "-c", PROGRAM, *words], cwd=cwd, env=env, capture_stdout=True, stderr=subprocess.STDOUT
        )
    return set(json.loads(done.stdout.splitlines()[-1]))


async def test_the_plugin_loads_only_itself(tmp_path: Path) -> None:
    without = await loaded_modules(cwd=tmp_path)
    assert PLUGIN not in without
    loaded = await loaded_modules("-p", PLUGIN, cwd=tmp_path) - without
    assert loaded == {PLUGIN}


def test_the_plugin_is_in_the_wheel_and_registered() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert project["project"]["entry-points"]["pytest11"] == {"crucible_trio": PLUGIN}
    assert f"{PLUGIN}.py" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"]
    assert (ROOT / f"{PLUGIN}.py").is_file()
