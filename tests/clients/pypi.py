"""Installs clients from PyPI, each environment once per checkout, apart from the development environment."""

from __future__ import annotations

import shutil
import sys
import venv
from pathlib import Path

from .npm import FOLDER, run_installer

# Programs that use the clients, and the requirements of each environment: every package, with its version.
PYTHON = FOLDER / "python"


def make_environment(folder: Path, requirements: Path) -> Path:
    """Make an environment, once per version of its requirements and of Python.

    Returns:
        Its Python.

    Raises:
        InstallError: pip failed, mostly because it did not reach a package index.
    """
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    wanted = f"{requirements.read_text()}{sys.version}"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, symlinks=True)
        # The requirements are complete. So pip need not look for more, which takes longer than the downloads. Python
        # compiles the modules that are used.
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"]
        pip = [sys.executable, "-m", "pip", "--python", str(python)]
        run_installer([*pip, "install", *options, "--requirement", str(requirements)], folder)
        stamp.write_text(wanted)
    return python
