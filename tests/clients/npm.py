"""Installs clients from npm and runs them, on Node 22 or newer.

A client runs with a separate environment: it sees no key, no proxy and no settings of the user. Packages are
installed once per checkout, from lock files and without install scripts.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio

FOLDER = Path(__file__).parent
PACKAGES = FOLDER / "packages"
OLDEST_NODE = 22  # the clients need it. Debian 12 has 18
INSTALL_SECONDS = 600
RUN_SECONDS = 240  # only a failing test takes this long


class InstallError(Exception):
    """A package manager could not install the packages for a test."""


class ClientError(Exception):
    """A client ended with an error.

    Attributes:
        code: Its exit code.
        output: Its standard output.
        errors: Its standard error.
    """

    def __init__(self, code: int, output: str, errors: str) -> None:
        super().__init__(f"exit code {code}: {errors[-4000:]}")
        self.code = code
        self.output = output
        self.errors = errors


def install_packages(npm: str, folder: Path) -> Path:
    """Install the packages of a folder's lock file, once per version of the lock file.

    Returns:
        The folder `node_modules`.

    Raises:
        InstallError: npm failed, mostly because it did not reach its registry.
    """
    installed = folder / "node_modules"
    stamp = installed / ".installed"
    wanted = hashlib.sha256((folder / "package-lock.json").read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        # Not `npm ci`: it refuses a lock file without the packages for other systems, and some of those that Qwen Code
        # names are not in the registry.
        run_installer([npm, "install", "--no-save", "--no-audit", "--no-fund", "--ignore-scripts"], folder)
        stamp.write_text(wanted)
    return installed


def run_installer(command: list[str], folder: Path) -> None:
    """Run a package manager, with the user's environment: it may need a proxy or another registry.

    Raises:
        InstallError: It failed.
    """
    try:
        subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"{Path(command[0]).name} took longer than {INSTALL_SECONDS} s in {folder}") from error
    except subprocess.CalledProcessError as error:
        code = re.search(r"npm error code (\S+)", error.stderr)
        message = f"{Path(command[0]).name} cannot install {folder.name}: {code[1] if code else error.stderr[-500:]}"
        raise InstallError(message) from error


def find_node(npm: str) -> Path:
    """Find a Node that is new enough, or install one from npm.

    npm's package `node` fetches one of these packages in its install script. The lock file names them directly, so that
    no script has to run.
    """
    found = shutil.which("node")
    if found and node_major(Path(found)) >= OLDEST_NODE:
        return Path(found)
    packages = install_packages(npm, PACKAGES / "node22")
    return next(packages.glob("node-linux-*/bin/node"))


def node_major(node: Path) -> int:
    """The major version of a Node."""
    done = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=INSTALL_SECONDS, check=True)
    return int(re.match(r"v(\d+)", done.stdout)[1])  # type: ignore[index]


@dataclass(frozen=True)
class Sandbox:
    """An environment for real clients: a home folder and a PATH, and nothing of the user's environment.

    Attributes:
        home: The home folder.
        path: The folders of programs that a client may need, before those of the system.
        environment: More variables.
    """

    home: Path
    path: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, str]:
        """The whole environment of a client."""
        path = ":".join([*map(str, self.path), "/usr/local/bin", "/usr/bin", "/bin"])
        return {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8"} | dict(self.environment)

    async def run(self, *command: str | Path, folder: Path, standard_input: str = "") -> str:
        """Run a client to its end.

        Args:
            command: The program and its arguments.
            folder: The working directory.
            standard_input: The text for the client to read.

        Returns:
            Its standard output.

        Raises:
            ClientError: Its exit code is not 0.
        """
        with trio.fail_after(RUN_SECONDS):
            done = await trio.run_process(
                [str(part) for part in command],
                stdin=standard_input.encode(),
                cwd=folder,
                env=self.variables,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
        output = done.stdout.decode()
        if done.returncode:
            raise ClientError(done.returncode, output, done.stderr.decode())
        return output
