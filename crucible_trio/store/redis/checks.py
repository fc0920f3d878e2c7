"""Refuses a Redis server that would lose streams, when it is first connected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from crucible_trio.errors import ConfigError
from crucible_trio.store.redis.link import Link

_LOWEST_VERSION: Final = (6, 2)


async def check_server(link: Link) -> None:
    """Check the server's version and settings.

    Raises:
        ConfigError: The server does not fit. The message names the setting.
        RedisDownError, coredis.exceptions.ResponseError: It does not answer, or refuses to.
    """
    problem = problem_with(_facts_in(await link.call("INFO", "everything")))
    if problem is not None:
        message = f"the Redis of log_url does not fit: {problem}"
        raise ConfigError(message, "log_url")


def problem_with(info: Mapping[str, str]) -> str | None:
    """What is wrong with a server, by the fields of its INFO."""
    version = info.get("redis_version", "0")  # Valkey gives the version of Redis that it is compatible with
    if tuple(int(part) for part in version.split(".")[:2]) < _LOWEST_VERSION:
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
    text = answer.decode() if isinstance(answer, bytes) else str(answer)
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))
