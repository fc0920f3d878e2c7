"""Every API from any process: the same bytes, and OpenAI's SDK resumes on another process."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import httpx
import openai
import pytest
import trio

pytestmark = pytest.mark.slow

OpenServed: TypeAlias = Callable[..., AbstractAsyncContextManager[Any]]

KEYS = {"CRUCIBLE_KEYS": "alice:key-of-alice,bob:key-of-bob"}
ALICE = {"Authorization": "Bearer key-of-alice"}


def read_events(stream: Any, at_most: int) -> list[Any]:
    """Read some events of a stream, and leave it."""
    with stream:
        return list(itertools.islice(stream, at_most))


def follow_a_response(urls: Sequence[str]) -> tuple[list[Any], Any]:
    """Start a response at the first URL, and go on at another one after every 40 events."""
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(openai.OpenAI(api_key="key-of-alice", base_url=f"{url}/v1", max_retries=0))
            for url in urls
        ]
        start: Any = clients[0].responses.create(model="recorded", input="x", background=True, stream=True)
        events = read_events(start, 20)
        response_id = events[0].response.id
        for client in itertools.cycle(clients[::-1]):
            after = events[-1].sequence_number
            events += read_events(client.responses.retrieve(response_id, stream=True, starting_after=after), 40)
            if events[-1].type == "response.completed":
                break
        later = clients[1].responses.create(model="recorded", input="and", previous_response_id=response_id)
        items = clients[0].responses.input_items.list(later.id)
        assert len(items.data) == 3  # the first question, its answer, the second question
        return events, clients[1].responses.retrieve(response_id)


async def test_the_sdk_starts_a_response_on_one_process_and_goes_on_at_another(serve_process: OpenServed) -> None:
    async with serve_process("--replay-speed", "2", **KEYS) as a, serve_process("--replay-speed", "50", **KEYS) as b:
        events, whole = await trio.to_thread.run_sync(follow_a_response, [a.url, b.url])
        assert [event.sequence_number for event in events] == list(range(len(events)))
        assert len(events) > 100
        assert whole.status == "completed"
        deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert whole.output_text == "".join(deltas)


async def test_every_view_is_the_same_bytes_from_any_process(serve_process: OpenServed) -> None:
    async with (
        serve_process("--replay-speed", "inf", **KEYS) as a,
        serve_process(**KEYS) as b,
        httpx.AsyncClient(headers=ALICE, timeout=60) as http,
    ):
        body = {"model": "recorded", "input": "x", "reasoning": {"effort": "high"}}
        response = (await http.post(f"{a.url}/v1/responses", json=body)).json()
        suffix = response["id"].removeprefix("resp_")
        stream = f"/v1/streams/str_{suffix}"
        for path in (
            stream,
            f"{stream}/events",
            f"{stream}/events?trace=final",
            f"{stream}/events?trace=none",
            f"/v1/responses/{response['id']}",
            f"/v1/responses/{response['id']}?stream=true",
            f"/v1/responses/{response['id']}?include=reasoning.encrypted_content",
            f"/v1/responses/{response['id']}/input_items",
            "/v1/streams",
        ):
            views = [await http.get(f"{served.url}{path}") for served in (a, b)]
            assert [view.status_code for view in views] == [200, 200], (path, views[1].text)
            if path == stream:  # only the generating process knows how far its engine is
                bodies = [view.json() | {"progress": None} for view in views]
                assert bodies[0] == bodies[1]
            else:
                assert views[0].content == views[1].content, path
        # The token in the URL of one process is valid at the other.
        events_url = (await http.get(f"{a.url}{stream}")).json()["events_url"]
        async with httpx.AsyncClient() as anonymous:
            assert (await anonymous.get(f"{b.url}{events_url}")).status_code == 200
            assert (await anonymous.get(f"{b.url}{stream}/events")).status_code == 401
        bob = {"Authorization": "Bearer key-of-bob"}
        assert (await http.get(f"{b.url}{stream}", headers=bob)).status_code == 404


async def test_a_chat_completion_is_joined_by_its_key_in_another_process(serve_process: OpenServed) -> None:
    body = {"model": "recorded", "messages": [{"role": "user", "content": "x"}]}
    async with (
        serve_process("--replay-speed", "inf", **KEYS) as a,
        serve_process(**KEYS) as b,
        httpx.AsyncClient(headers=ALICE | {"Idempotency-Key": "k"}, timeout=60) as http,
    ):
        answers = [await http.post(f"{served.url}/v1/chat/completions", json=body) for served in (a, b)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert "Crucible-Replayed" not in answers[0].headers
        assert answers[1].headers["Crucible-Replayed"] == "true"
        assert answers[0].json() == answers[1].json()
