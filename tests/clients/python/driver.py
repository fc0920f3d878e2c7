"""The part that all Python drivers share. `capabilities.py` describes the calls.

These programs import nothing from the other tests, because the clients have environments apart.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

# A client asks as always, and the upstream's answer differs.
FAILING = ("refused request", "rate limit")


@dataclass(frozen=True)
class Call:
    """One call, as `capabilities.Script.calls` writes it."""

    id: str
    client: str
    capability: str
    prompt: str
    seen: str
    url: str
    model: str
    second: str
    result: str
    image: str


class Driver:
    """A client. It has a method for each capability, which returns a text, or an object as a dictionary.

    Asynchronous methods run in one event loop, the others in threads.
    """

    def __init__(self, call: Call) -> None:
        self.call = call

    def saw(self, text: str | None) -> None:
        """Say that a piece of the text is here, if it is one. A second time is harmless."""
        if text:
            with urllib.request.urlopen(self.call.seen) as answer:
                answer.read()

    async def run(self, method: Callable[[], Any]) -> Any:
        """Run a method."""
        return await (method() if inspect.iscoroutinefunction(method) else asyncio.to_thread(method))

    async def report(self) -> dict[str, Any]:
        """Make the call."""
        capability = "whole" if self.call.capability in FAILING else self.call.capability
        method = getattr(self, capability.replace(", ", "_").replace(" ", "_"), None)
        if method is None:
            return {"missing": True}
        try:
            made = await self.run(method)
        except Exception as error:  # the error is the report
            return {"error": type(error).__name__, "status": _status_of(error), "message": str(error)}
        return {"text": made} if isinstance(made, str) else {"value": made}


def _status_of(error: BaseException | None) -> int | None:
    """The HTTP status of an error, or of its cause."""
    while error is not None:
        status = getattr(error, "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def read_calls() -> list[Call]:
    """The calls of the standard input."""
    return [Call(**call) for call in json.load(sys.stdin)]


def main(drivers: Mapping[str, type[Driver]], calls: Sequence[Call] = ()) -> None:
    """Make all calls, by default those of the standard input, at the same time, and print their reports."""
    calls = calls or read_calls()
    standard_output, sys.stdout = sys.stdout, sys.stderr  # some clients print advice
    standard_output.write(json.dumps(asyncio.run(_reports(drivers, calls))))


async def _reports(drivers: Mapping[str, type[Driver]], calls: Sequence[Call]) -> dict[str, dict[str, Any]]:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(len(calls)))
    reports = await asyncio.gather(*[drivers[call.client](call).report() for call in calls])
    return dict(zip([call.id for call in calls], reports, strict=True))
