"""`crucible check`: the resume kit against a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from crucible_trio.testing.resume import Report, Row


async def check_server(check: Callable[..., Awaitable[Report]]) -> int:
    """Check a server and print the report to standard output.

    Args:
        check: The kit's `check` with all its arguments except `on_progress`.

    Returns:
        The exit code: 0 passed, 1 failed, 2 the check could not run.

    Raises:
        ConfigError: The URL is invalid.

    Cancellation: open connections are reset, and the server keeps the streams that were started.
    """
    with _progress() as on_progress:
        report = await check(on_progress=on_progress)
    # Without colours and wrapping, because users copy commands from the report.
    Console(highlight=False, markup=False, soft_wrap=True).print(str(report))
    return report.exit_code


@contextmanager
def _progress() -> Iterator[Callable[[Row, int], None]]:
    """A progress bar for each client and phase on standard error, if it is a terminal."""
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
