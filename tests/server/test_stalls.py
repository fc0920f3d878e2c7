"""A client that has stopped reading holds nothing up for longer than the write deadline (trap 5)."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

import crucible_trio.server.serving as serving_module
from crucible_trio import Finish, Output, Request
from crucible_trio.settings import load_settings

PIECE = "x" * 1000


@pytest.fixture(autouse=True)
def _the_kernel_is_patient(monkeypatch) -> None:
    """TCP_USER_TIMEOUT, the second line, would do the same a little later and hide that the first is missing."""
    monkeypatch.setattr(serving_module, "_USER_TIMEOUT_MARGIN_SECONDS", 1000)


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
        assert stream.status == "running"  # cut, not lost: the client may come back
        again = await served.connect()
        await again.request("GET", f"/v1/streams/{stream.id}/events", f"Last-Event-ID: {client.last_id}")
        await again.read_until(b"output.delta")
        assert again.events[0]["seq"] == client.events[-1]["seq"] + 1


async def test_a_client_that_reads_slowly_but_reads_is_not_reset(serving) -> None:
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


async def test_a_stalled_client_does_not_hold_up_a_shutdown(serving) -> None:
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
        # What arrived is a beginning of the log: nothing was sent after the gap.
        seqs = [event["seq"] for event in client.events]
        assert seqs == list(range(1, len(seqs) + 1))
