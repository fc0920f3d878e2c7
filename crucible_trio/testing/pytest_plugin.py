"""The resume kit in pytest: a fixture for one's own tests, and an option that makes a test of a URL.

Thin: it calls `crucible_trio.testing.resume.check` and fails with its report. Everything is imported when it is used,
because pytest loads this in every run of everybody who has the package installed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import pytest

if TYPE_CHECKING:
    from _pytest._code.code import TerminalRepr

    from crucible_trio.testing.resume import Report, Wire
    from crucible_trio.testing.resume.asgi import App


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("crucible", "crucible_trio")
    group.addoption(
        "--check-resume",
        metavar="URL",
        action="append",
        default=[],
        help="check that the event streams of the server there can be resumed after a cut at any byte",
    )
    group.addoption("--check-resume-wire", metavar="FILE", help="TOML file that describes the server")
    group.addoption("--check-resume-log-cuts", metavar="N", type=int, help="bytes to cut per client from the log")


def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add a test for each URL."""
    wire_file = config.getoption("--check-resume-wire")
    log_cuts = config.getoption("--check-resume-log-cuts")
    items += [
        _ResumeItem.from_parent(session, name=f"check-resume[{url}]", url=url, wire_file=wire_file, log_cuts=log_cuts)
        for url in config.getoption("--check-resume")
    ]


@pytest.fixture(scope="session")
def check_resume() -> Callable[..., Awaitable[Report]]:
    """The kit's `check`, to be awaited with the same arguments; what it finds fails the test, with its report."""
    return _check


async def _check(target: str | App, wire: Wire | None = None, **options: object) -> Report:
    from crucible_trio.testing.resume import check

    report = await check(target, wire, **options)  # type: ignore[arg-type]  # it says itself what it cannot take
    if not report.ok:
        # No `pytest.fail`: as an Exception it leaves the nurseries of a test as other failed assertions do.
        message = f"\n{report}"
        raise AssertionError(message)
    return report


@final
class _ResumeItem(pytest.Item):
    def __init__(
        self, *, name: str, parent: pytest.Session, url: str, wire_file: str | None, log_cuts: int | None
    ) -> None:
        super().__init__(name, parent)
        self._url = url
        self._wire_file = wire_file
        self._log_cuts = log_cuts

    def runtest(self) -> None:
        import trio

        from crucible_trio.testing.resume import load_wire

        wire = load_wire(Path(self._wire_file)) if self._wire_file else None
        trio.run(partial(_check, self._url, wire, log_cuts=self._log_cuts))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str | TerminalRepr:
        if isinstance(excinfo.value, AssertionError):
            return str(excinfo.value).lstrip()
        return super().repr_failure(excinfo, style)  # type: ignore[arg-type]  # pytest's own words for a style

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name
