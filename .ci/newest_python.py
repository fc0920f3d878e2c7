"""Prints the path of the newest Python on this machine that can make a virtual environment.

Looks at `python3.N` on the PATH and in pyenv's folder. A program may be there and not run: pyenv's shims are such.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

_CHECK = "import ensurepip, sys, venv; print(*sys.version_info[:3], sys.version_info.releaselevel)"


def version(program: Path) -> tuple[int, ...] | None:
    """The version of a Python, or None if it does not run, is no release or lacks venv."""
    try:
        done = subprocess.run([program, "-c", _CHECK], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    *numbers, level = done.stdout.split()
    return tuple(map(int, numbers)) if level == "final" else None


def main() -> None:
    """Print the path."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    folders += sorted((Path.home() / ".pyenv" / "versions").glob("*/bin"))
    found: dict[tuple[int, ...], Path] = {}
    for program in [Path(sys.executable), *(path for folder in folders for path in folder.glob("python3.*"))]:
        if re.fullmatch(r"python3?(\.\d+)?", program.name) and (numbers := version(program)):
            found.setdefault(numbers, program)
    print(found[max(found)])


if __name__ == "__main__":
    main()
