"""Real clients in front of failing upstreams: how often the upstream is asked, and which status the client reports."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio

from crucible_trio.engines import open_engine
from crucible_trio.settings import load_settings

from .conftest import ServedApp
from .retries import (
    ATTEMPTS_WITHOUT_STATUS,
    CASES,
    CLIENTS,
    LITELLM_CLIENTS,
    NPM_CLIENTS,
    OPENAI_CLIENTS,
    REPEATED_ALL_THE_SAME,
    SETTINGS,
    WAYS,
    Call,
    Measured,
    find_case,
)
from .upstream import MODEL, UpstreamRequest, open_scripted_upstream

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "clients.md"
CALLS = [Call(case, client, way) for case in CASES for client in CLIENTS for way in WAYS]

Run: TypeAlias = Callable[..., Awaitable[str]]


@pytest.fixture(scope="module")
def measured_once() -> list[Measured | None]:
    return []


@pytest.fixture
async def measured(
    measured_once: list[Measured | None], serving: Any, run_node: Run, run_litellm: Run, run_python: Run
) -> Measured:
    """All calls, made once for all tests of this module."""
    if not measured_once:
        measured_once.append(None)  # a measurement that fails takes minutes, and would fail again
        measured_once[0] = await measure(serving, run_node, run_python, run_litellm)
    [result] = measured_once
    assert result is not None, "the measurement failed in an earlier test"
    return result


async def measure(serving: Any, run_node: Run, run_python: Run, run_litellm: Run) -> Measured:
    """Make all calls at the same time."""
    ends: dict[str, Any] = {}
    served: ServedApp

    async def answer(request: UpstreamRequest) -> None:
        case = find_case(request.text)
        assert case.answer is not None
        await case.answer(request, partial(cancel, request.text))

    async def cancel(call_id: str) -> None:
        for stream in await served.pipeline.list():
            if stream.status == "running" and stream.request.messages[-1].text == call_id:
                stream.cancel()

    async def make(run: Run, program: str, clients: tuple[str, ...]) -> None:
        calls = [
            call.arguments((lost if call.case.answer is None else served).base_url)
            for call in CALLS
            if call.client in clients
        ]
        ends.update(json.loads(await run(program, standard_input=json.dumps(calls))))

    def settings(base_url: str) -> Any:
        return load_settings({}, engine="upstream", upstream_base_url=base_url, model=MODEL).engine

    async with (
        open_scripted_upstream(answer) as upstream,
        open_engine(settings(upstream.base_url)) as engine,
        serving(engine, **SETTINGS) as served,
        open_engine(settings("http://127.0.0.1:9/v1")) as lost_engine,
        serving(lost_engine, **SETTINGS) as lost,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(make, run_node, "retries.mjs", NPM_CLIENTS)
        nursery.start_soon(make, run_python, "failing_calls.py", OPENAI_CLIENTS)
        nursery.start_soon(make, run_litellm, "failing_calls.py", LITELLM_CLIENTS)
    return Measured(
        ends,
        client_requests=served.requests + lost.requests,
        upstream_requests=Counter(request.text for request in upstream.requests),
    )


async def test_every_call_fails(measured: Measured) -> None:
    assert {call.id: end for call in CALLS if "error" not in (end := measured.ends[call.id])} == {}


async def test_a_call_that_a_repetition_cannot_mend_costs_one_upstream_request(measured: Measured) -> None:
    costs = {call: measured.upstream_requests[call.id] for call in CALLS if call.case.repeats == "nobody"}
    expected = {call: REPEATED_ALL_THE_SAME.get((call.case.name, call.client), 1) for call in costs}
    assert costs == expected


async def test_where_a_status_came_the_upstream_gets_as_many_requests_as_the_client_sent(measured: Measured) -> None:
    calls = [call for call in CALLS if call.case.repeats != "both"]
    requests = {call: measured.upstream_requests[call.id] for call in calls}
    assert requests == {call: measured.client_requests[call.id] for call in calls}
    repeated = [requests[call] for call in calls if call.case.repeats == "the client"]
    assert min(repeated) > 1


async def test_where_no_status_came_the_server_repeats_each_request_of_the_client(measured: Measured) -> None:
    for call in CALLS:
        if call.case.repeats == "both" and call.case.answer is not None:
            sent = measured.client_requests[call.id]
            assert measured.upstream_requests[call.id] == ATTEMPTS_WITHOUT_STATUS * sent, call


async def test_every_client_reports_the_status(measured: Measured) -> None:
    calls = [call for call in CALLS if call.case.status is not None]
    statuses = {call: measured.ends[call.id]["status"] for call in calls}
    assert statuses == {call: call.case.status for call in calls}


async def test_the_page_has_the_measured_table(measured: Measured) -> None:
    [table] = re.findall(r"<!-- table: retries -->\n\n((?:\|.*\n)+)", PAGE.read_text("utf-8"))
    assert table == measured.table()
