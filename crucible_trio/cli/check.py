"""`crucible check`: the resume kit against a server, with a report for people."""

from __future__ import annotations

import shlex
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from crucible_trio.testing.resume import Report, Row


async def check_server(check: Callable[..., Awaitable[Report]], again: str) -> int:
    """Check a server and print the report to standard output.

    Args:
        check: The kit's `check` with all it needs but `on_progress`.
        again: For the lines of the report that repeat one cut; see `command_again`.

    Returns:
        The exit code: 0 passed, 1 failed, 2 could not check.

    Raises:
        ConfigError: The URL cannot be used.
    """
    with _progress() as on_progress:
        report = await check(on_progress=on_progress)
    report.again = again
    # Plain, also on a terminal: lines are copied out of it.
    Console(highlight=False, markup=False, soft_wrap=True).print(str(report))
    return report.exit_code


def command_again(url: str, wire_file: Path | None) -> str:
    """The command without what picks the cuts. A key is not repeated: it comes from the environment."""
    words = ["crucible", "check", url]
    if wire_file is not None:
        words += ["--wire", str(wire_file)]
    return shlex.join(words)


@contextmanager
def _progress() -> Iterator[Callable[[Row, int], None]]:
    """A bar for each client and phase on standard error, while it is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    tasks: dict[int, TaskID] = {}
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def on_progress(row: Row, done: int) -> None:
            task = tasks.get(id(row))
            if task is None:
                task = tasks[id(row)] = progress.add_task(f"{row.phase} {row.client}", total=row.planned)
            progress.update(task, completed=done)

        yield on_progress
