"""Limits refuse new streams temporarily, tell the client when to retry, and do not affect running streams."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

KEYS = {"alice": "alice-key", "bob": "bob-key"}
ALICE = {"Authorization": "Bearer alice-key"}
BOB = {"Authorization": "Bearer bob-key"}
BODY = {"input": "Why?"}

STARTS = (
    ("POST", "/v1/streams", {"Accept": "*/*"}),
    ("POST", "/v1/streams", {"Accept": "text/event-stream"}),
    ("GET", "/v1/generate?prompt=Why", {}),
)


async def all_starts_refused(api, status: int, code: str, **headers: str) -> None:
    for method, target, more in STARTS:
        answer = await api.ask(method, target, BODY if method == "POST" else b"", **(headers | more))
        assert (answer.status, answer.error["code"]) == (status, code)
        assert answer.header("retry-after") == "5"
        assert "param" not in answer.error
    assert api.number("requests_refused_total", code=code) == len(STARTS)


async def test_an_owner_with_too_many_streams_gets_429_and_others_do_not(open_api, autojump_clock: MockClock) -> None:
    async with open_api(over := trio.Event(), keys=KEYS, max_streams_per_owner=2) as api:
        first = await api.post(body=BODY, **ALICE)
        await api.post(body=BODY, **ALICE)
        await all_starts_refused(api, 429, "too_many_streams", **ALICE)
        assert (await api.post(body=BODY, **BOB)).status == 201
        # A running stream can still be read.
        assert (await api.get(f"/v1/streams/{first.stream_id}", **ALICE)).json["status"] == "running"
        over.set()
        await wait_all_tasks_blocked()
        assert (await api.post(body=BODY, **ALICE)).status == 201


async def test_without_keys_only_the_total_limit_applies(open_api, autojump_clock: MockClock) -> None:
    async with open_api(over := trio.Event(), max_streams=3, max_streams_per_owner=1) as api:
        for _ in range(3):
            stream = await api.start()
        await all_starts_refused(api, 503, "overloaded")
        # A running stream can still be resumed and joined.
        async with api.open_stream(Last_Event_Id=f"{stream}.1") as reader:
            await reader.until(lambda exchange: exchange.messages)
            assert reader.status == 200
        over.set()
        await wait_all_tasks_blocked()
        await api.start()


async def test_full_logs_refuse_new_streams_and_end_none(open_api, autojump_clock: MockClock) -> None:
    async with open_api("x" * 9000, over := trio.Event(), "y", total_log_bytes=8192) as api:
        stream = await api.start()
        await wait_all_tasks_blocked()
        await all_starts_refused(api, 503, "overloaded")
        over.set()
        await wait_all_tasks_blocked()
        assert (await api.get(f"/v1/streams/{stream}")).status in {200, 410}
        assert api.number("streams_ended_total", status="completed") == 1
        # The finished stream has no reader, so it is evicted for the new one.
        await api.start()


async def test_a_draining_server_refuses_new_streams_and_serves_running_ones(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api("a", over := trio.Event(), "b") as api, trio.open_nursery() as nursery:
        kept = await api.post(body=BODY, Idempotency_Key="k")
        nursery.start_soon(api.pipeline.drain, 1000)
        await wait_all_tasks_blocked()
        await all_starts_refused(api, 503, "draining")
        joined = await api.post(body=BODY, Idempotency_Key="k")
        assert (joined.status, joined.stream_id) == (200, kept.stream_id)
        async with api.open("GET", f"/v1/streams/{kept.stream_id}/events") as reader:
            await reader.until_event(2)
            over.set()
            await reader.until(lambda exchange: exchange.ended)
            assert b"stream.completed" in reader.messages[-1]


@pytest.mark.parametrize(
    ("code", "method", "target", "headers"),
    [
        ("invalid_request", "GET", "/v1/generate", ALICE),
        ("invalid_last_event_id", "POST", "/v1/streams", ALICE | {"Last_Event_Id": "x"}),
        ("unauthorized", "GET", "/v1/streams", {}),
        ("forbidden", "GET", "/v1/streams", {"Sec_Fetch_Site": "cross-site"}),
        ("stream_not_found", "GET", "/v1/streams/x", ALICE),
        ("unsupported_media_type", "POST", "/v1/streams", ALICE),
        (
            "body_too_large",
            "POST",
            "/v1/streams",
            ALICE | {"Content_Type": "application/json", "Content_Length": "99999999"},
        ),
    ],
)
async def test_refusals_are_counted_by_their_code(
    open_api, code, method, target, headers, autojump_clock: MockClock
) -> None:
    async with open_api("a", keys=KEYS) as api:
        for count in (1, 2):
            answer = await api.ask(method, target, **headers)
            assert answer.error["code"] == code
            assert api.number("requests_refused_total", code=code) == count
        assert (
            f'crucible_requests_refused_total{{code="{code}"}} 2.0'
            in (await api.get("/metrics", **ALICE)).body.decode()
        )
