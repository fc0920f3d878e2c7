"""A progress bar for the download of the model's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from crucible_trio.engines.local.weights import find_weights


@contextmanager
def fetch_progress() -> Iterator[Callable[[int, int | None], None]]:
    """A callback `(bytes downloaded, bytes in total)` that draws a bar on standard error.

    Nothing is drawn before the first call. The bar ends with the download, on a line that stays, because log lines
    follow: they bypass rich and would end up on the bar's line. If standard error is not a terminal that can draw a
    bar, the first call prints one line, because a minute of silence looks like a hang.
    """
    console = Console(stderr=True)
    columns = (TextColumn("downloading the model"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=console)
    task = bar.add_task("fetch", total=None)
    begun = False

    def show(done: int, total: int | None) -> None:
        nonlocal begun
        if not begun:
            begun = True
            if console.is_interactive:
                bar.start()
            else:
                console.print("downloading the model (93 MB, only once) ...")
        bar.update(task, completed=done, total=total)
        if done == total and console.is_interactive:
            bar.stop()

    try:
        yield show
    finally:
        if begun and console.is_interactive:
            bar.stop()  # a second time does nothing


async def fetch_weights() -> Path:
    """Find or download the weights of the small model, and verify them.

    Returns:
        The path of the weights.

    Raises:
        ConfigError: The weights cannot be downloaded, or the download is corrupt.

    Cancellation: a partial download is deleted.
    """
    with fetch_progress() as progress:
        return (await find_weights(progress=progress)).path
