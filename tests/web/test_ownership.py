"""Keys and stream tokens: only its owner can reach a stream. To other clients it does not exist."""

from __future__ import annotations

import hmac

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.apis.kit.access import Access
from crucible_trio.records import new_stream_id
from crucible_trio.settings import ApiSettings

KEYS = {"alice": "alice-key", "bob": "bob-key"}
ALICE = {"Authorization": "Bearer alice-key"}
BOB = {"Authorization": "Bearer bob-key"}
BODY = {"input": "Why?"}


def on_every_route(stream: str) -> list[tuple[str, str, dict[str, str]]]:
    """Every request that reads or stops a stream."""
    url = f"/v1/streams/{stream}"
    position = {"Last_Event_Id": f"{stream}.1"}
    return [
        ("GET", url, {}),
        ("HEAD", url, {}),
        ("GET", f"{url}/events", {}),
        ("GET", f"{url}/events", position),
        ("HEAD", f"{url}/events", {}),
        ("POST", f"{url}/cancel", {}),
        ("DELETE", url, {}),
        ("POST", "/v1/streams", position),
        ("GET", "/v1/generate", position),
        ("GET", f"/v1/generate?last_event_id={stream}.1", {}),
        ("HEAD", "/v1/generate", position),
    ]


@pytest.mark.parametrize("state", ["running", "finished", "expired", "deleted"])
async def test_another_owners_stream_looks_exactly_like_one_that_never_existed(
    open_api, state, autojump_clock: MockClock
) -> None:
    steps = ["a", trio.Event()] if state == "running" else ["a"]
    async with open_api(*steps, keys=KEYS, retention_seconds=60) as api:
        stream = (await api.post(body=BODY, **ALICE)).stream_id
        await wait_all_tasks_blocked()
        if state == "expired":
            await trio.sleep(61)
        elif state == "deleted":
            await api.ask("DELETE", f"/v1/streams/{stream}", **ALICE)
        unknown = new_stream_id()
        for (method, target, headers), (_, other_target, other_headers) in zip(
            on_every_route(stream), on_every_route(unknown), strict=True
        ):
            for foreign in ({}, {"Last_Event_Id": f"{stream}.99"} if headers else {}):
                answer = await api.ask(method, target, **(headers | foreign | BOB))
                never = await api.ask(method, other_target, **(other_headers | BOB))
                assert answer.status == never.status == 404, (method, target)
                assert answer.body == never.body
                assert answer.headers == never.headers
        assert (await api.get("/v1/streams", **BOB)).json == {"data": []}
        if state == "running":
            snapshot = (await api.get(f"/v1/streams/{stream}", **ALICE)).json
            assert (snapshot["status"], snapshot["output"]) == ("running", "a")
            assert api.number("readers") == 0


async def test_each_owner_sees_their_own_streams(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", keys=KEYS) as api:
        one = (await api.post(body=BODY, **ALICE)).stream_id
        two = (await api.post(body=BODY, **BOB)).stream_id
        for headers, stream in ((ALICE, one), (BOB, two)):
            assert [entry["id"] for entry in (await api.get("/v1/streams", **headers)).json["data"]] == [stream]
            assert (await api.get(f"/v1/streams/{stream}", **headers)).status == 200
            assert (await api.get(f"/v1/streams/{stream}/events", **headers)).status == 200


WRONG_KEYS = [
    None,
    "",
    "Bearer",
    "Bearer ",
    "Bearer wrong",
    "Bearer alice-key2",
    "Bearer alice-ke",
    "Bearer ALICE-KEY",
    "Bearer alice-key bob-key",
    "Bearer alice-key,bob-key",
    "alice-key",
    "Basic alice-key",
    "Bearer alice",
    "Bearer \xff\xfe",
    "Bearer " + "x" * 10_000,
    "Bearer\0alice-key",
]


@pytest.mark.parametrize("key", WRONG_KEYS)
async def test_a_wrong_key_is_the_same_401_on_every_route(open_api, key, autojump_clock: MockClock) -> None:
    headers = {} if key is None else {"Authorization": key}
    async with open_api("a", keys=KEYS) as api:
        stream = (await api.post(body=BODY, **ALICE)).stream_id
        expected = b'{"error":{"code":"unauthorized","message":"a valid key is needed: Authorization: Bearer ..."}}'
        for method, target, more in [
            *on_every_route(stream),
            *on_every_route("x"),
            ("POST", "/v1/streams", {}),
            ("GET", "/v1/streams", {}),
            ("GET", "/v1/generate?prompt=x", {}),
            ("HEAD", "/v1/generate?prompt=x", {}),
            ("GET", "/v1/models", {}),
            ("GET", "/metrics", {}),
        ]:
            answer = await api.ask(method, target, **(headers | more))
            assert (answer.status, answer.body) == (401, expected), (method, target)
            assert answer.header("www-authenticate") == "Bearer"
        for path in ("/healthz", "/readyz"):
            assert (await api.get(path, **headers)).status == 200
        assert len((await api.get("/v1/streams", **ALICE)).json["data"]) == 1


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_case_insensitive(open_api, scheme, autojump_clock: MockClock) -> None:
    async with open_api("a", keys=KEYS) as api:
        assert (await api.get("/v1/streams", Authorization=f"{scheme} alice-key")).status == 200


async def test_a_key_is_compared_with_all_of_them_in_constant_time(
    open_api, monkeypatch, autojump_clock: MockClock
) -> None:
    compared = []

    def note(one: bytes, two: bytes) -> bool:
        compared.append((len(one), len(two)))
        return one == two

    async with open_api("a", keys=KEYS) as api:
        monkeypatch.setattr(hmac, "compare_digest", note)
        for key in ("alice-key", "bob-key", "x", "", "y" * 1000):
            compared.clear()
            await api.get("/v1/streams", Authorization=f"Bearer {key}")
            assert compared == [(32, 32)] * 2


async def test_without_keys_all_clients_are_one_anonymous_owner(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        stream = (await api.post(body=BODY, Authorization="Bearer whatever")).stream_id
        assert (await api.get(f"/v1/streams/{stream}")).status == 200


# Stream tokens


async def test_the_events_url_has_a_token_if_there_are_keys(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", keys=KEYS) as api:
        started = await api.post(body=BODY, **ALICE)
        stream = started.stream_id
        url = started.json["events_url"]
        assert url.startswith(f"/v1/streams/{stream}/events?token=")
        assert (await api.get(f"/v1/streams/{stream}", **ALICE)).json["events_url"] == url
        assert (await api.get("/v1/streams", **ALICE)).json["data"][0]["events_url"] == url
        # A client that cannot set headers uses the URL unchanged, and reconnects with the same URL.
        whole = await api.get(url)
        assert whole.types == ["stream.created", "output.delta", "stream.completed"]
        assert (await api.get(url, Last_Event_Id=f"{stream}.1")).types == ["output.delta", "stream.completed"]
        assert (await api.get(url, Last_Event_Id=f"{stream}.3")).status == 204
        assert (await api.get(f"{url}&trace=none&done=event", Last_Event_Id=f"{stream}.3")).status == 200
        assert (await api.ask("HEAD", url)).status == 200
        assert (await api.get(url, Authorization="Bearer wrong")).body == whole.body


async def test_the_events_url_is_plain_without_keys(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        started = await api.post(body=BODY)
        assert started.json["events_url"] == f"/v1/streams/{started.stream_id}/events"
        # An unnecessary token is ignored.
        assert (await api.get(f"{started.json['events_url']}?token=x")).status == 200


async def test_a_token_opens_the_events_of_its_stream_and_nothing_else(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", keys=KEYS) as api:
        started = await api.post(body=BODY, **ALICE)
        other = await api.post(body=BODY, **ALICE)
        stream, token = started.stream_id, started.json["events_url"].partition("token=")[2]
        url = f"/v1/streams/{stream}"
        for method, target in (
            ("GET", url),
            ("DELETE", url),
            ("POST", f"{url}/cancel"),
            ("GET", f"/v1/streams/{other.stream_id}/events"),
            ("GET", f"/v1/streams/{new_stream_id()}/events"),
            ("GET", "/v1/streams"),
            ("POST", "/v1/streams"),
            ("GET", "/v1/models"),
            ("GET", "/metrics"),
            ("GET", "/v1/generate"),
        ):
            for headers in ({}, {"Authorization": f"Bearer {token}"}):
                answer = await api.ask(method, f"{target}?token={token}", **headers)
                assert (answer.status, answer.error["code"]) == (401, "unauthorized"), (method, target)
        resumed = await api.post(f"/v1/streams?token={token}", Last_Event_Id=f"{stream}.1")
        assert resumed.status == 401
        # The token does not open an offset of another stream either.
        foreign = await api.get(f"{url}/events?token={token}", Last_Event_Id=f"{other.stream_id}.1")
        assert foreign.status == 400


async def test_a_token_that_was_tampered_with_is_401(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", keys=KEYS) as api:
        started = await api.post(body=BODY, **ALICE)
        url, _, token = started.json["events_url"].partition("token=")
        flipped = ("A" if token[0] != "A" else "B") + token[1:]
        for bad in (
            flipped,
            token[:-1],
            token[1:],
            token[::-1],
            token + token,
            "",
            "x",
            "%00",
            "%FF",
            "%C3%A4",
            "." + token,
        ):
            answer = await api.get(f"{url}token={bad}")
            assert (answer.status, answer.error["code"]) == (401, "unauthorized"), bad
        # With a valid key the token does not matter.
        assert (await api.get(f"{url}token=x", **ALICE)).status == 200
        assert (await api.get(f"{url}token=x", **BOB)).status == 404


async def test_a_token_is_valid_until_the_stream_is_gone(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", keys=KEYS, retention_seconds=60) as api:
        url = (await api.post(body=BODY, **ALICE)).json["events_url"]
        await trio.sleep(59)
        assert (await api.get(url)).status == 200
        await trio.sleep(2)
        assert (await api.get(url)).status == 410
        deleted = await api.post(body=BODY, **ALICE)
        await api.ask("DELETE", f"/v1/streams/{deleted.stream_id}", **ALICE)
        assert (await api.get(deleted.json["events_url"])).status == 404


def test_tokens_are_the_secrets_and_the_secret_is_random_unless_set() -> None:
    secrets = ("s", "s", "t", None, None)
    tokens = [Access(ApiSettings(keys=KEYS, token_secret=secret)).token("str_x") for secret in secrets]
    assert tokens[0] == tokens[1]
    assert len(set(tokens)) == 4
