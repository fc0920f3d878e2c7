"""A progress bar for the download of the model's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import final

from crucible_trio.engines.local.weights import find_weights


@contextmanager
def fetch_progress() -> Iterator[Callable[[int, int | None], None]]:
    """A callback `(bytes downloaded, bytes in total)` that draws a bar on standard error.

    Nothing is drawn before the first call. The bar ends with the download, on a line that stays, because log lines
    follow: they bypass rich and would end up on the bar's line. If standard error is not a terminal that can draw a
    bar, the first call prints one line, because a minute of silence looks like a hang.
    """
    with ExitStack() as drawing:
        bar: _Bar | None = None

        def show(done: int, total: int | None) -> None:
            nonlocal bar
            if bar is None:
                bar = _Bar()
                drawing.callback(bar.stop)
            bar.show(done, total)

        yield show


@final
class _Bar:
    """The bar, or the one line in its place."""

    def __init__(self) -> None:
        # Only for a download: every server and supervisor would keep rich's 3 MiB.
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        console = Console(stderr=True)
        columns = (TextColumn("downloading the model"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("fetch", total=None)
        self._is_drawn = console.is_interactive
        if self._is_drawn:
            self._bar.start()
        else:
            console.print("downloading the model (93 MB, only once) ...")

    def show(self, done: int, total: int | None) -> None:
        self._bar.update(self._task, completed=done, total=total)
        if done == total:
            self.stop()

    def stop(self) -> None:
        """End the bar. A second time does nothing."""
        if self._is_drawn:
            self._bar.stop()


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
