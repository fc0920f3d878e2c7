"""`POST .../cancel` stops a stream and keeps its log. `DELETE` also removes the stream."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.engine import Finish
from crucible_trio.output import Output

BODY = {"input": "Why?"}


async def test_cancel_stops_the_engine_and_all_readers_get_the_terminal_record(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    engine = scripted("a", trio.Event())
    async with open_api(engine=engine) as api:
        stream = await api.start()
        url = f"/v1/streams/{stream}"
        async with api.open("GET", f"{url}/events") as one, api.open("GET", f"{url}/events?trace=none") as two:
            await one.until_event(2)
            await two.until_event(2)
            answer = await api.post(f"{url}/cancel")
            assert answer.status == 202
            assert answer.json["id"] == stream
            for reader in (one, two):
                await reader.until(lambda exchange: exchange.ended)
                assert (reader.types[-1], reader.events[-1]["by"]) == ("stream.cancelled", "client")
        assert engine.live == 0
        for _ in range(2):
            again = await api.post(f"{url}/cancel")
            assert again.status == 200
            assert again.json["status"] == "cancelled"
        assert again.json == answer.json | {"status": "cancelled"}


async def test_cancel_may_be_repeated_while_the_engine_stops(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", trio.Event()) as api:
        stream = await api.start()
        url = f"/v1/streams/{stream}"
        async with api.open("POST", f"{url}/cancel") as one, api.open("POST", f"{url}/cancel") as two:
            for answer in (one, two):
                await answer.until(lambda exchange: exchange.ended)
                assert answer.status in {200, 202}
        assert (await api.get(url)).json["by"] == "client"


async def test_cancelling_a_finished_stream_changes_nothing(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        stream = (await api.stream()).stream_id
        before = (await api.get(f"/v1/streams/{stream}")).body
        answer = await api.post(f"/v1/streams/{stream}/cancel")
        assert (answer.status, answer.json["status"]) == (200, "completed")
        assert (await api.get(f"/v1/streams/{stream}")).body == before


async def test_cancelling_before_the_engine_was_called_leaves_it_uncalled(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api, api.open_stream(allowance=0) as reader:
        await wait_all_tasks_blocked()
        assert (await api.post(f"/v1/streams/{reader.stream_id}/cancel")).status == 202
        reader.allow(9)
        await reader.until(lambda exchange: exchange.ended)
        assert reader.types == ["stream.created", "stream.cancelled"]
    assert engine.requests == []


@pytest.mark.parametrize("running", [True, False])
async def test_delete_cancels_and_forgets(open_api, scripted, running, autojump_clock: MockClock) -> None:
    engine = scripted("a", *([trio.Event()] if running else []))
    async with open_api(engine=engine) as api:
        other = await api.start()
        stream = await api.start()
        url = f"/v1/streams/{stream}"
        await wait_all_tasks_blocked()
        async with api.open("GET", f"{url}/events", allowance=0) as reader:
            await wait_all_tasks_blocked()
            answer = await api.ask("DELETE", url)
            assert (answer.status, answer.body, answer.headers) == (204, b"", [])
            for method, target in (
                ("GET", url),
                ("GET", f"{url}/events"),
                ("HEAD", f"{url}/events"),
                ("POST", f"{url}/cancel"),
                ("DELETE", url),
                ("GET", f"/v1/generate?last_event_id={stream}.1"),
            ):
                gone = await api.ask(method, target)
                assert (gone.status, gone.error["code"]) == (404, "stream_not_found"), (method, target)
            assert (await api.stream(Last_Event_Id=f"{stream}.1")).status == 404
            reader.allow(9)
            await reader.until(lambda exchange: exchange.ended)
            assert reader.types[-1] == ("stream.cancelled" if running else "stream.completed")
        assert [summary["id"] for summary in (await api.get("/v1/streams")).json["data"]] == [other]
        assert engine.live == (1 if running else 0)


async def test_a_stream_whose_engine_stops_slowly_is_forgotten_immediately(open_api, autojump_clock: MockClock) -> None:
    async def stubborn(request: object, output: Output) -> Finish:
        try:
            await output.delta("a")
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(5)
        return Finish()

    async with open_api(engine=stubborn) as api:
        stream = (await api.post(body=BODY, Idempotency_Key="k")).stream_id
        url = f"/v1/streams/{stream}"
        await wait_all_tasks_blocked()
        assert (await api.ask("DELETE", url)).status == 204
        for method, target in (("GET", url), ("GET", f"{url}/events"), ("POST", f"{url}/cancel"), ("DELETE", url)):
            assert (await api.ask(method, target)).status == 404
        assert (await api.post(body=BODY, Idempotency_Key="k")).status == 404
        assert (await api.get("/v1/streams")).json == {"data": []}
        assert api.number("streams_running") == 1
