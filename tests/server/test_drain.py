"""Shutdown with readers attached."""

from __future__ import annotations

import pytest
import trio

from crucible_trio import Finish, Output, Request
from crucible_trio.settings import load_settings
from crucible_trio.web import create_app


def gated() -> tuple[trio.Event, object]:
    gate = trio.Event()

    async def engine(request: Request, output: Output) -> Finish:
        await output.delta("before ")
        await gate.wait()
        await output.delta("after")
        return Finish()

    return gate, engine


async def test_running_streams_finish_with_their_readers_attached(serving) -> None:
    gate, engine = gated()
    async with serving(engine) as served:
        client = await served.connect()
        await client.start()
        await client.read_until(b"output.delta")
        served.stopping.set()
        with trio.fail_after(10):
            await client.read_until(b"server.draining")
            # A reader that is cut now can reconnect. A new stream is refused.
            other = await served.connect()
            await other.request("GET", "/readyz")
            assert (await other.read_response())[0] == 503
            await other.request("POST", "/v1/streams", body=b'{"input":"x"}')
            status, body = await other.read_response()
            assert status == 503
            assert b"draining" in body
            client.reset()
            again = await served.connect()
            stream_id = client.last_id.rpartition(".")[0]
            await again.request("GET", f"/v1/streams/{stream_id}/events", f"Last-Event-ID: {client.last_id}")
            await again.read_until(b"server.draining")
            gate.set()
            await again.read_until(b"0\r\n\r\n")
            await served.stopped.wait()
        assert client.text + again.text == "before after"
        assert [event["type"] for event in again.events][-1] == "stream.completed"


async def test_streams_that_outlast_the_drain_are_cancelled_by_shutdown(serving) -> None:
    _, engine = gated()
    async with serving(engine, load_settings({}, drain_seconds=0.1)) as served:
        client = await served.connect()
        await client.start()
        await client.read_until(b"output.delta")
        served.stopping.set()
        with trio.fail_after(10):
            await client.read_until(b"0\r\n\r\n")
            await served.stopped.wait()
        assert client.events[-1]["type"] == "stream.cancelled"
        assert client.events[-1]["by"] == "shutdown"


async def test_idle_connections_close_and_nothing_new_is_accepted(serving) -> None:
    _, engine = gated()
    async with serving(engine, keep_alive_timeout=1000, flush_timeout=1000) as served:
        idle = await served.connect()
        await idle.request("GET", "/healthz")
        await idle.read_response()
        served.stopping.set()
        with trio.fail_after(10):
            await idle.read_to_close()
            await served.stopped.wait()
        with pytest.raises(ConnectionRefusedError):
            await served.connect()


async def test_cancelling_serve_ends_the_application_in_order(serving) -> None:
    order: list[str] = []

    def app_with_lifespan(pipeline, settings):
        app = create_app(pipeline, settings)

        @app.before_serving
        async def start() -> None:
            order.append("start")

        @app.after_serving
        async def end() -> None:
            await trio.sleep(0.01)
            order.append("end")

        return app

    _, engine = gated()
    async with serving(engine, app=app_with_lifespan) as served:
        client = await served.connect()
        await client.start()
        await client.read_until(b"output.delta")
        served.scope.cancel()
        with trio.fail_after(10):
            await served.stopped.wait()
    assert order == ["start", "end"]


async def test_an_application_that_cannot_start_is_not_served() -> None:
    from quart_trio import QuartTrio

    from crucible_trio.server import Config, serve

    app = QuartTrio(__name__)

    @app.before_serving
    async def start() -> None:
        raise RuntimeError("no model")

    config = Config()
    config.bind = ["127.0.0.1:0"]
    with trio.fail_after(10), pytest.RaisesGroup(pytest.RaisesExc(Exception, match="no model"), flatten_subgroups=True):
        await serve(app, config)


@pytest.mark.parametrize("passes", range(6))
async def test_serve_can_be_cancelled_while_it_starts(passes: int) -> None:
    from quart_trio import QuartTrio

    from crucible_trio.server import Config, serve

    app = QuartTrio(__name__)
    order: list[str] = []

    @app.before_serving
    async def start() -> None:
        order.append("start")
        await trio.sleep_forever() if passes % 2 else await trio.lowlevel.checkpoint()
        order.append("started")

    config = Config()
    config.bind = ["127.0.0.1:0"]

    async def run() -> None:
        with scope:
            await serve(app, config)

    scope = trio.CancelScope()
    with trio.move_on_after(30) as limit:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            for _ in range(passes):
                await trio.lowlevel.cancel_shielded_checkpoint()
            scope.cancel()
    assert not limit.cancelled_caught
    assert "started" not in order or passes % 2 == 0
