"""A client that has stopped reading delays nothing for longer than the write deadline."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

import crucible_trio.server.listening as listening_module
from crucible_trio import Finish, Output, Request
from crucible_trio.settings import load_settings

PIECE = "x" * 1000


@pytest.fixture(autouse=True)
def _long_user_timeout(monkeypatch) -> None:
    """TCP_USER_TIMEOUT also resets a stalled client, a little later. It would hide a missing write deadline."""
    monkeypatch.setattr(listening_module, "_USER_TIMEOUT_MARGIN_SECONDS", 1000)


async def flood(request: Request, output: Output) -> Finish:
    for _ in range(30_000):
        await output.delta(PIECE)
    return Finish()


async def test_a_stalled_client_is_reset_after_the_write_deadline(serving) -> None:
    async with serving(flood, write_timeout=0.3) as served:
        client = await served.connect(receive_buffer=4096)
        await client.start()
        await client.read_until(b"output.delta")
        [stream] = await served.pipeline.list()
        assert stream.log.readers == 1
        with trio.fail_after(20):
            while stream.log.readers:
                await trio.sleep(0.02)
            with pytest.raises(trio.BrokenResourceError):
                await client.read_to_close()
        assert stream.status == "running"  # only the connection is gone: the client can resume
        again = await served.connect()
        await again.request("GET", f"/v1/streams/{stream.id}/events", f"Last-Event-ID: {client.last_id}")
        await again.read_until(b"\n\n")
        assert again.events[0]["seq"] == client.events[-1]["seq"] + 1


async def test_a_client_that_reads_slowly_is_not_reset(serving) -> None:
    async def some(request: Request, output: Output) -> Finish:
        for _ in range(400):
            await output.delta(PIECE)
        return Finish()

    async with serving(some, write_timeout=1.0) as served:
        client = await served.connect(receive_buffer=4096)
        await client.start()
        with trio.fail_after(60):
            while b"0\r\n\r\n" not in client.received:
                assert await client.receive(4096)
                await trio.sleep(0.005)
        assert client.text == PIECE * 400


async def test_a_stalled_client_does_not_delay_a_shutdown(serving) -> None:
    settings = load_settings({}, drain_seconds=0.2, flush_seconds=0.2)
    async with serving(flood, settings, write_timeout=1000) as served:
        client = await served.connect(receive_buffer=4096)
        await client.start()
        await client.read_until(b"output.delta")
        served.stopping.set()
        with trio.fail_after(20):
            await served.stopped.wait()


async def test_nothing_follows_a_write_that_was_cut_short(serving) -> None:
    async with serving(flood, write_timeout=0.2) as served:
        client = await served.connect(receive_buffer=4096)
        await client.start()
        await client.read_until(b"output.delta")
        [stream] = await served.pipeline.list()
        with trio.fail_after(20):
            while stream.log.readers:
                await trio.sleep(0.02)
            with suppress(trio.BrokenResourceError):
                await client.read_to_close()
        # The client has a prefix of the log: nothing was sent after the gap.
        seqs = [event["seq"] for event in client.events]
        assert seqs == list(range(1, len(seqs) + 1))
