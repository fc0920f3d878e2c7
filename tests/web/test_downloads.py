"""Large answers: how many bytes all of them together may have while they are written."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

import pytest
from trio.testing import MockClock, wait_all_tasks_blocked

SIZE = 300_000
LIMIT = 1_000_000
BODY = {"model": "scripted", "input": "x", "instructions": "y" * SIZE}


async def _create(api) -> str:
    answer = await api.post("/v1/responses", BODY)
    assert answer.status == 200
    return json.loads(answer.body)["id"]


@pytest.mark.parametrize(
    ("method", "target", "size"),
    [
        ("GET", "/v1/responses/{id}", SIZE),
        ("POST", "/v1/responses/{id}/cancel", SIZE),
        ("GET", "/v1/responses/{id}?stream=true", 2 * SIZE),
        ("GET", "/v1/streams/{stream}", SIZE),
    ],
)
async def test_answers_that_no_client_reads_have_a_limit_and_beyond_it_a_request_is_503(
    open_api, method: str, target: str, size: int, autojump_clock: MockClock
) -> None:
    async with open_api("z" * SIZE if "streams" in target else "a", total_request_bytes=LIMIT) as api:
        response = await _create(api)
        target = target.format(id=response, stream=response.replace("resp", "str"))
        fitting = LIMIT // size
        async with AsyncExitStack() as stack:
            stalled = [await stack.enter_async_context(api.open(method, target, allowance=0)) for _ in range(fitting)]
            await wait_all_tasks_blocked()
            assert [exchange.status for exchange in stalled] == [200] * fitting
            assert fitting * size < api.number("download_bytes") < LIMIT
            refused = await api.ask(method, target)
            assert (refused.status, refused.header("retry-after")) == (503, "5")
            assert "too many large responses" in refused.body.decode()
            assert (await api.post("/v1/responses", {"model": "scripted", "input": "x"})).status == 200
        await wait_all_tasks_blocked()
        assert api.number("download_bytes") == 0
        answer = await api.ask(method, target)
        assert answer.status == 200
        assert len(answer.body) > size
        assert api.number("download_bytes") == 0


async def test_a_large_answer_is_the_same_bytes_in_pieces(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        answer = await api.get(f"/v1/responses/{await _create(api)}")
        assert json.loads(answer.body)["instructions"] == BODY["instructions"]
        assert int(answer.header("content-length")) == len(answer.body) > SIZE
        assert max(map(len, answer.messages)) <= 65_536


async def test_one_answer_may_be_larger_than_the_limit(open_api, autojump_clock: MockClock) -> None:
    text = "a" * SIZE
    async with open_api(text, total_request_bytes=1000) as api:
        created = await api.post("/v1/responses", {"model": "scripted", "input": "x"})
        response = json.loads(created.body)["id"]
        answer = await api.get(f"/v1/responses/{response}")
        assert json.loads(answer.body)["output"][0]["content"][0]["text"] == text


async def test_the_answer_to_a_start_counts_and_is_written_but_beyond_the_limit_nothing_starts(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api("a", total_request_bytes=2 * SIZE) as api, AsyncExitStack() as stack:
        body = BODY | {"store": False}
        stalled = [await stack.enter_async_context(api.open("POST", "/v1/responses", body, allowance=0))]
        await wait_all_tasks_blocked()
        stalled.append(await stack.enter_async_context(api.open("POST", "/v1/responses", body, allowance=0)))
        await wait_all_tasks_blocked()
        assert [exchange.status for exchange in stalled] == [200, 200]
        assert api.number("download_bytes") > 2 * SIZE
        for target, small in (
            ("/v1/responses", {"model": "scripted", "input": "x"}),
            ("/v1/streams", {"input": "x"}),
        ):
            assert (await api.post(target, small)).status == 503
        assert api.number("streams_running") == 0
