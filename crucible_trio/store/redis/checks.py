"""Makes the first connection to Redis, and checks on every connection whether the server would lose streams."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Final, final

import trio

from crucible_trio.errors import ConfigError
from crucible_trio.store.redis import scripts
from crucible_trio.store.redis.health import Health
from crucible_trio.store.redis.link import Caller, Link

logger = logging.getLogger(__name__)

_FIRST_CONNECT_SECONDS: Final = 10.0
_LOWEST_VERSION: Final = (6, 2)


@final
class LinkCheck:
    """Prepares each new connection and checks its server (`LinkWatcher`).

    Args:
        health: Is told when a connection is lost.

    Attributes:
        reason: Why the last connection was lost, or could not be opened.
        problem: What is wrong with the server's version or settings. None if nothing is.
        is_first: Whether no connection has been taken into use yet. Then `first_connection` reports the problem.
    """

    def __init__(self, health: Health) -> None:
        self.reason = "no answer"
        self.problem: str | None = None
        self.is_first = True
        self._health = health

    async def prepare(self, call: Caller) -> None:
        """Check a Redis that was just connected, and cache the scripts in it."""
        problem = problem_with(_facts_in(await call("INFO", "everything")))
        if problem is not None and problem != self.problem and not self.is_first:
            # An operator has changed a setting, or another server answers. It may still serve, so streams go on.
            logger.warning("the Redis of log_url may lose streams: %s", problem)
        self.problem = problem
        for script in scripts.ALL:
            await call("SCRIPT", "LOAD", script.text)

    def failed(self, reason: str) -> None:
        """The connection is lost."""
        self.reason = reason
        self._health.failed(reason)


async def first_connection(link: Link, check: LinkCheck) -> None:
    """Wait for the first connection of a link whose watcher is `check`.

    Raises:
        ConfigError: Redis does not answer for some seconds, refuses the connection, or does not fit. The message says
            which, and names the setting that does not fit.
    """
    with trio.move_on_after(_FIRST_CONNECT_SECONDS):
        if await link.opened_or_refused():
            check.is_first = False
            if check.problem is None:
                return
            message = f"the Redis of log_url does not fit: {check.problem}"
            raise ConfigError(message, "log_url")
    message = f"cannot use the Redis that log_url names: {check.reason}"
    raise ConfigError(message, "log_url")


def problem_with(info: Mapping[str, str]) -> str | None:
    """What is wrong with a server, by the fields of its INFO."""
    version = info.get("redis_version", "0")  # Valkey gives the version of Redis that it is compatible with
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < _LOWEST_VERSION:
        return f"it has version {version}, and 6.2 is the lowest. Valkey has all that is needed as well"
    if info.get("cluster_enabled") == "1":
        return "cluster-enabled is yes, and a cluster is not supported: use one server, with replicas if you like"
    if info.get("role", "master") != "master":
        return "it is a replica: name the primary server"
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        return f"maxmemory-policy is {policy}, which would drop records of running streams: set it to noeviction"
    return None


def _facts_in(answer: object) -> dict[str, str]:
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))
