"""Labels over each kind of log: the newest stream that has one, and its readers that have not been sent the end."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from crucible_trio.config import Settings
from crucible_trio.errors import IdempotencyConflictError, InvalidRequestError
from crucible_trio.pipeline import Pipeline
from crucible_trio.request import Request, Sampling
from crucible_trio.testing import ScriptedEngine

OpenPipeline: TypeAlias = Callable[..., AbstractAsyncContextManager[Pipeline]]

QUESTION = Request("Why?", on_disconnect="continue")


async def test_a_label_leads_to_its_owners_newest_stream(
    open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(ScriptedEngine("a", 5.0, "b")) as pipeline:
        assert await pipeline.find_labelled("chat", owner="alice") is None
        first = await pipeline.start(QUESTION, owner="alice", label="chat")
        other = await pipeline.start(QUESTION, owner="alice", label="other")
        plain = await pipeline.start(QUESTION, owner="alice")
        found = await pipeline.find_labelled("chat", owner="alice")
        assert found is not None
        assert (found.id, found.facts.label, plain.facts.label) == (first.id, "chat", None)
        assert await pipeline.find_labelled("chat", owner="bob") is None
        bobs = await pipeline.start(QUESTION, owner="bob", label="chat")
        second = await pipeline.start(QUESTION, owner="alice", label="chat")
        await trio.sleep(60)  # the end changes nothing
        expected = {("chat", "alice"): second, ("other", "alice"): other, ("chat", "bob"): bobs}
        for (label, owner), stream in expected.items():
            found = await pipeline.find_labelled(label, owner=owner)
            assert found is not None
            assert found.id == stream.id


async def test_a_refused_start_leaves_the_label_to_the_stream_that_has_it(
    open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(ScriptedEngine("a")) as pipeline:
        first = await pipeline.start(QUESTION, label="chat")
        with pytest.raises(InvalidRequestError):
            await pipeline.start(Request("Why?", sampling=Sampling(seed=1)), label="chat")
        found = await pipeline.find_labelled("chat")
        assert found is not None
        assert found.id == first.id


async def test_a_label_is_kept_as_long_as_its_stream(
    open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(ScriptedEngine("a"), Settings(retention_seconds=60)) as pipeline:
        older = await pipeline.start(QUESTION, label="chat")
        await trio.sleep(30)
        newer = await pipeline.start(QUESTION, label="chat")
        await trio.sleep(45)
        found = await pipeline.find_labelled("chat")
        assert found is not None
        assert found.id == newer.id  # the older one has expired
        await trio.sleep(30)
        assert await pipeline.find_labelled("chat") is None
        forgotten = await pipeline.start(QUESTION, label="chat")
        await pipeline.forget(forgotten)
        assert await pipeline.find_labelled("chat") is None
        for stream in (older, newer, forgotten):
            assert not await pipeline.owed_ends.is_owed(stream)


async def test_a_label_is_part_of_the_request_for_an_idempotency_key(
    open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(ScriptedEngine("a")) as pipeline:

        async def start(label: str | None) -> str:
            stream, _ = await pipeline.start_or_join(
                QUESTION, "key", owner="", on_disconnect="continue", starts_with_reader=False, label=label
            )
            return stream.id

        assert await start("chat") == await start("chat")
        for other in ("another", None):
            with pytest.raises(IdempotencyConflictError):
                await start(other)


async def test_readers_that_have_not_been_sent_the_end_are_counted(
    open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(ScriptedEngine("a")) as pipeline:
        count = pipeline.store.count_readers
        stream = await pipeline.start(QUESTION, label="chat")
        assert await count(stream.id) == 1  # the client that started it
        assert await count(stream.id, attached=1, away=-1) == 1
        assert await count(stream.id, attached=1, away=-1) == 2  # a second one, whom nobody missed
        assert await count(stream.id, attached=-1, away=1) == 2  # it is cut
        assert await count(stream.id, attached=-1) == 1  # the first one has the end
        assert await count(stream.id, attached=1, away=-1) == 1  # the second one is back
        assert await count(stream.id, attached=-1) == 0
        plain = await pipeline.start(QUESTION)
        assert await count(plain.id, attached=1) == 0


async def test_an_end_is_owed_until_every_client_was_sent_it_for_long_enough(
    open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(ScriptedEngine("a")) as pipeline:
        stream = await pipeline.start(QUESTION, label="chat")
        assert await pipeline.owed_ends.is_owed(stream)  # the client that started it has not attached
        await pipeline.owed_ends.reader_came(stream)
        await pipeline.owed_ends.reader_went(stream, has_end=False, doubt_seconds=10)
        await trio.sleep(100)
        assert await pipeline.owed_ends.is_owed(stream)
        await pipeline.owed_ends.reader_came(stream)
        await pipeline.owed_ends.reader_went(stream, has_end=True, doubt_seconds=10)
        await trio.sleep(9)
        assert await pipeline.owed_ends.is_owed(stream)
        await trio.sleep(2)
        assert not await pipeline.owed_ends.is_owed(stream)
        await pipeline.owed_ends.reader_came(stream)
        assert await pipeline.owed_ends.is_owed(stream)
        await pipeline.owed_ends.reader_went(stream, has_end=True, doubt_seconds=0)
        assert not await pipeline.owed_ends.is_owed(stream)


async def test_a_reader_that_is_in_doubt_keeps_no_stream_in_memory(
    open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(ScriptedEngine("a")) as pipeline:
        stream = await pipeline.start(QUESTION, label="chat")
        await pipeline.owed_ends.reader_came(stream)
        await stream.log.wait_finished()
        await trio.testing.wait_all_tasks_blocked()
        await pipeline.owed_ends.reader_went(stream, has_end=True, doubt_seconds=1000)
        await trio.sleep(1)
        await pipeline.forget(stream)
        kept = weakref.ref(stream)
        del stream
        gc.collect()
        assert kept() is None


async def test_a_reader_that_leaves_while_it_is_cancelled_is_counted(
    open_pipeline_over: OpenPipeline, autojump_clock: MockClock
) -> None:
    async with open_pipeline_over(ScriptedEngine("a")) as pipeline:
        stream = await pipeline.start(QUESTION, label="chat")
        with trio.CancelScope() as scope:
            scope.cancel()
            await pipeline.owed_ends.reader_came(stream)
            await pipeline.owed_ends.reader_went(stream, has_end=True, doubt_seconds=0)
        assert not await pipeline.owed_ends.is_owed(stream)
