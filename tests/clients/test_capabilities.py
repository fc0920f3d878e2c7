"""The capabilities of real clients in front of a scripted upstream. One test for each cell of the docs' table."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from crucible_trio.engines import open_engine
from crucible_trio.settings import load_settings

from .capabilities import CAPABILITIES, TRACE_FIELD, Capability, Client, Exchange, Script, call_id, run_driver, table
from .capable_clients import CLIENTS
from .upstream import MODEL, open_scripted_upstream

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "clients.md"
CELLS = [
    pytest.param(client, capability, id=f"{capability.name}-{client.name}")
    for client in CLIENTS
    for capability in CAPABILITIES
]

Run: TypeAlias = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module")
def exchanges() -> dict[str, dict[str, Exchange] | None]:
    """By driver, its calls. None: the driver failed."""
    return {}


@pytest.fixture
def run(request: pytest.FixtureRequest, client: Client) -> Run:
    """Runs the client's driver."""
    run: Run = request.getfixturevalue(client.run)
    return run


@pytest.fixture
async def exchange(
    exchanges: dict[str, dict[str, Exchange] | None], serving: Any, run: Run, client: Client, capability: Capability
) -> Exchange:
    """The call of this cell. All calls of a driver are made once, for all tests of this module."""
    if client.driver not in exchanges:
        exchanges[client.driver] = None  # a driver that fails would fail again
        exchanges[client.driver] = await drive(serving, run, client.driver)
    made = exchanges[client.driver]
    assert made is not None, "the driver failed in an earlier test"
    return made[call_id(capability, client)]


async def drive(serving: Any, run: Run, driver: str) -> dict[str, Exchange]:
    """Make all calls of a driver."""
    script = Script([client for client in CLIENTS if client.driver == driver])
    async with open_scripted_upstream(script.answer) as upstream:
        settings = load_settings(
            {},
            engine="upstream",
            upstream_base_url=upstream.base_url,
            upstream_reasoning_input=TRACE_FIELD,
            model=MODEL,
        )
        async with open_engine(settings.engine) as engine, serving(engine) as served:
            await run_driver(script, run, driver, url=served.base_url, upstream_url=upstream.base_url)
            for body in served.bodies:
                script.add_sent(body)
    return script.exchanges


@pytest.mark.slow
@pytest.mark.npm
@pytest.mark.parametrize(("client", "capability"), CELLS)
async def test_the_client_can_do_what_the_table_says(
    exchange: Exchange, client: Client, capability: Capability
) -> None:
    if lack := client.without.get(capability.name):
        assert exchange.report == lack.report
    else:
        assert capability.check(exchange) == client.cell(capability)


def test_the_page_has_the_table() -> None:
    [found] = re.findall(r"<!-- table: capabilities -->\n\n((?:\|.*\n)+\n(?:-.*\n)*)", PAGE.read_text("utf-8"))
    assert found == table(CLIENTS)
