"""The resume kit in pytest: the fixture `check_resume`, and the option `--check-resume URL`, which adds a test.

pytest loads this module in every project that has crucible_trio installed. It is outside the package because importing
anything from the package loads trio and the core. The fixture and the test import the kit when they run.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, final

import pytest

if TYPE_CHECKING:
    from _pytest._code.code import TerminalRepr

    from crucible_trio.testing.resume import Report, WireFormat
    from crucible_trio.testing.resume.asgi import AsgiApp


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("crucible", "crucible_trio")
    group.addoption(
        "--check-resume",
        metavar="URL",
        action="append",
        default=[],
        help="check that clients of the server at URL can resume its event streams after a cut at any byte",
    )
    group.addoption(
        "--check-resume-wire", metavar="FILE", help="`messages`, `ui`, or a TOML file that describes the server"
    )
    group.addoption(
        "--check-resume-log-cuts",
        metavar="N",
        type=int,
        help="bytes to cut per client from the log, not all",
    )


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
    """`crucible_trio.testing.resume.check`, which here fails the test with its report if it finds a fault."""
    return _check


async def _check(target: str | AsgiApp, wire: WireFormat | None = None, **options: object) -> Report:
    from crucible_trio.testing.resume import check

    report = await check(target, wire, **options)  # type: ignore[arg-type]  # `check` refuses wrong options
    if not report.ok:
        # `pytest.fail` raises a BaseException. A nursery of the test would not wrap that as it wraps a failed assert.
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

        from crucible_trio.testing.resume import command_again, find_wire

        wire_file = Path(self._wire_file) if self._wire_file else None
        wire = find_wire(wire_file) if wire_file is not None else None
        again = command_again([self._url], wire_file)
        trio.run(partial(_check, self._url, wire, log_cuts=self._log_cuts, again=again))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str | TerminalRepr:
        if isinstance(excinfo.value, AssertionError):
            return str(excinfo.value).lstrip()
        return super().repr_failure(excinfo, style)  # type: ignore[arg-type]  # pytest defines the styles

    def reportinfo(self) -> tuple[Path, int | None, str]:
        return self.path, None, self.name
