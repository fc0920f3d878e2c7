"""Runs a command, and logs to standard error."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from crucible_trio.errors import ConfigError

Result = TypeVar("Result")


def run(command: Callable[[], Awaitable[Result]]) -> Result:
    """Run a command.

    Raises:
        ConfigError: As the command, or any of its tasks, has raised it, without the groups of its nurseries.
    """
    try:
        return trio.run(command)
    except* ConfigError as group:
        error: BaseException = group
    # Not inside the block: before Python 3.11.4 an exception raised there is wrapped in a group.
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    raise error


def log_to_stderr(level: int, worker: int | None = None) -> None:
    """Write log lines to standard error, with the number of a worker if there are several."""
    name = "" if worker is None else f"worker {worker}: "
    logging.basicConfig(level=level, format=f"%(asctime)s %(levelname)s {name}%(message)s")
