"""The wheel: what is in it, its metadata, and that it works in an environment that has nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
LINKS = "https://git.example.org/team/crucible_trio/{view}/v0.2.0"
INSTALL_SECONDS = 300
LS_FILES = ("git", "ls-files", "--cached", "--others", "--exclude-standard", "crucible_trio")


def build(folder: Path, links: str | None = None) -> Path:
    """The wheel, built as pip builds it."""
    environment = {name: value for name, value in os.environ.items() if name != "README_LINKS"}
    program = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        cwd=ROOT,
        env=environment | ({} if links is None else {"README_LINKS": links}),
        capture_output=True,
        text=True,
        timeout=INSTALL_SECONDS,
        check=True,
    )
    return folder / done.stdout.strip()


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_string(archive.read(name).decode())


def targets(page: str) -> list[str]:
    return re.findall(r"\]\(([^)]+)\)", page)


def test_the_readme_is_the_description_and_keeps_its_relative_links(tmp_path: Path) -> None:
    fields = metadata(build(tmp_path))
    assert fields["Description-Content-Type"] == "text/markdown"
    assert fields["Author"] == "crucible_trio maintainers"
    assert str(fields.get_payload()).strip() == README.strip()
    assert "docs/tutorial.md" in targets(README)


def test_a_variable_makes_every_link_of_the_description_absolute(tmp_path: Path) -> None:
    page = str(metadata(build(tmp_path, LINKS)).get_payload())
    pages, images = LINKS.replace("{view}", "blob"), LINKS.replace("{view}", "raw")
    assert f"[Tutorial]({pages}/docs/tutorial.md)" in page
    assert f"![The demo page in light colours]({images}/docs/assets/page-light.png)" in page
    assert len(targets(page)) == len(targets(README))
    for before, after in zip(targets(README), targets(page), strict=True):
        if not before.startswith(("#", "http")):
            assert after == f"{images if before.endswith(('.png', '.svg', '.webp')) else pages}/{before}"
            assert (ROOT / before.partition("#")[0]).exists()


def test_the_wheel_holds_the_package_and_nothing_else_of_the_checkout(tmp_path: Path) -> None:
    with zipfile.ZipFile(build(tmp_path)) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"crucible_trio", "crucible_trio_pytest.py"}
    kept = subprocess.run(LS_FILES, cwd=ROOT, capture_output=True, text=True, check=False)
    if kept.returncode == 0:  # a checkout, not an unpacked archive
        assert names - {"crucible_trio_pytest.py"} == set(kept.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.usefixtures("need_package_index")
def test_the_readmes_first_program_runs_from_a_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    found = re.search(r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found
    program, output = found.groups()
    (tmp_path / "hello.py").write_text(program)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(*command: str | Path) -> str:
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "venv", "env")
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", build(tmp_path))
    assert str(tmp_path) in run(python, "-c", "import crucible_trio; print(crucible_trio.__file__)")
    assert run(python, "-W", "error", "hello.py") == output
    assert "serve" in run(tmp_path / "env" / "bin" / "crucible", "--help")
