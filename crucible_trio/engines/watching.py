"""Asks upstream servers for their models, at start and from then on.

A server that is down is asked again after 1 s, 2 s, 4 s and so on, up to every 30 s. One that responds is asked every
30 s, because its models may change. Up to half of each delay is taken off at random, so that many gateways do not ask
together.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from typing import Final, Protocol, final, runtime_checkable

import trio

from crucible_trio.engine import Engine
from crucible_trio.errors import ConfigError, EngineError

logger = logging.getLogger(__name__)

# Seconds.
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 30.0
# How long the start waits for servers that have not said which models they have.
START_PATIENCE: Final = 3.0

_MOST_SHOWN: Final = 10  # names of models in a line of the log


@runtime_checkable
class DiscoversModels(Engine, Protocol):
    """An engine that can ask another server for its models."""

    async def discover(self) -> None:
        """Ask the server, and declare in `info` its models and whether it responds.

        Raises:
            EngineError: The server does not respond, or cannot say which models it has.
        """


async def discover_at_start(engine: DiscoversModels) -> None:
    """Ask a server that must respond.

    Raises:
        ConfigError: It does not, or does not list a model. The message says what to do.
    """
    try:
        await engine.discover()
    except EngineError as error:
        message = f"{error.message}: start the server, check the base URL, or name the model with --model"
        raise ConfigError(message, "upstream_base_url") from error


async def watch_all(engines: Sequence[DiscoversModels], nursery: trio.Nursery) -> None:
    """Ask the servers behind some engines until the nursery is cancelled.

    Returns when all servers without known models have answered or failed, or after a few seconds.
    """
    watches = [_Watch(engine) for engine in engines]
    for watch in watches:
        nursery.start_soon(watch.run)
    with trio.move_on_after(START_PATIENCE):
        for watch in watches:
            if not watch.engine.info.models:
                await watch.was_asked.wait()


@final
class _Watch:
    def __init__(self, engine: DiscoversModels) -> None:
        self.engine = engine
        self.was_asked = trio.Event()
        self._was_up = engine.info.is_up  # in the log

    async def run(self) -> None:
        delay = FIRST_DELAY
        if self._was_up:  # asked when it was opened
            await _sleep_about(LONGEST_DELAY)
        while True:
            if await self._ask():
                pause, delay = LONGEST_DELAY, FIRST_DELAY
            else:
                pause, delay = delay, min(2 * delay, LONGEST_DELAY)
            self.was_asked.set()
            await _sleep_about(pause)

    async def _ask(self) -> bool:
        name, models = self.engine.info.name, self.engine.info.models
        try:
            await self.engine.discover()
        except EngineError as error:
            if self._was_up is not False:
                logger.warning("upstream %s is down, asking again: %s", name, error.message)
            self._was_up = False
            return False
        except Exception:  # one server must not stop the streams of the others
            logger.exception("upstream %s: internal error", name)
            return False
        if not self._was_up or models != self.engine.info.models:
            logger.info("upstream %s is up, models: %s", name, _shown(self.engine.info.models))
        self._was_up = True
        return True


def _shown(models: Sequence[str]) -> str:
    names = [model if model.isprintable() else ascii(model) for model in models[:_MOST_SHOWN]]
    return ", ".join(names) + (f" and {len(models) - _MOST_SHOWN} more" if len(models) > _MOST_SHOWN else "")


async def _sleep_about(seconds: float) -> None:
    await trio.sleep(seconds * random.uniform(0.5, 1.0))
