"""The bodies of requests: who may send one, and how many bytes all of them together may have."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.apis.kit.bodies import BODY_SECONDS
from crucible_trio.apis.kit.uploads import MAX_VALUES, Uploads
from crucible_trio.errors import InvalidRequestError, OverloadedError
from crucible_trio.metrics import Metrics

JSON = {"Content_Type": "application/json"}
ALICE = JSON | {"Authorization": "Bearer alice-key"}
KEYS = {"alice": "alice-key"}
# A pause in a body, longer than any test.
STALL = 100_000.0
ROUTES = {
    "/v1/streams": b'{"input":"%s"}',
    "/v1/chat/completions": b'{"messages":[{"role":"user","content":"%s"}],"stream":true}',
    "/v1/responses": b'{"input":"%s","stream":true}',
    "/v1/completions": b'{"model":"scripted","prompt":"%s"}',
    "/v1/messages": b'{"model":"scripted","max_tokens":9,"messages":[{"role":"user","content":"%s"}]}',
    "/v1/embeddings": b'{"model":"scripted","input":"%s"}',
    "/v1/ui/chat": b'{"messages":[{"role":"user","parts":[{"type":"text","text":"%s"}]}]}',
}

WITHOUT_BODY = (
    "/v1/streams/x/cancel",
    "/v1/responses/resp_x/cancel",
    "/v1/messages/count_tokens",
    "/v1/ui/chat/x/stop",
)


async def test_every_route_that_reads_a_body_is_tested_here(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        rules = [rule.rule for rule in api.app.url_map.iter_rules() if "POST" in (rule.methods or ())]
        assert {rule for rule in rules if not rule.endswith(("/cancel", "/stop", "/count_tokens"))} == ROUTES.keys()


@pytest.mark.parametrize("target", [*ROUTES, *WITHOUT_BODY])
async def test_a_request_without_a_key_is_refused_before_its_body_is_read(
    open_api, target: str, autojump_clock: MockClock
) -> None:
    async with open_api("a", keys=KEYS) as api:
        begin = trio.current_time()
        for body in ([STALL], [b'{"', STALL], [b"x" * 100_000, STALL]):
            for headers in (JSON, JSON | {"Content_Length": "20000000"}, ALICE | {"Sec_Fetch_Site": "cross-site"}):
                answer = await api.post(target, body, **headers)
                assert answer.status == (403 if "Sec_Fetch_Site" in headers else 401)
        assert trio.current_time() == begin
        assert api.number("upload_bytes") == 0


@pytest.mark.parametrize("target", ROUTES)
async def test_a_declared_length_over_the_limit_is_refused_before_anything_is_read(
    open_api, target: str, autojump_clock: MockClock
) -> None:
    async with open_api("a", max_request_bytes=1000) as api:
        begin = trio.current_time()
        answer = await api.post(target, [STALL], Content_Length="1001", **JSON)
        assert answer.status == 413
        assert trio.current_time() == begin


@pytest.mark.parametrize("target", ROUTES)
async def test_all_uploads_together_have_a_limit(open_api, target: str, autojump_clock: MockClock) -> None:
    async with open_api("a", total_request_bytes=1000) as api:
        async with api.open("POST", target, [b" " * 300, 1.0, b" " * 600, STALL], **JSON):
            await trio.sleep(2)
            assert api.number("upload_bytes") == 900
            for body, headers in (([b" " * 101, STALL], {}), ([STALL], {"Content_Length": "101"})):
                begin = trio.current_time()
                answer = await api.post(target, body, **JSON, **headers)
                assert (answer.status, answer.header("retry-after")) == (529 if "messages" in target else 503, "5")
                assert "too many large requests" in answer.body.decode()
                assert trio.current_time() == begin
                assert api.number("upload_bytes") == 900
            async with api.open("POST", target, [b" " * 100, STALL], **JSON) as fits:
                await trio.sleep(2)
                assert fits.status is None
                assert api.number("upload_bytes") == 1000
        await wait_all_tasks_blocked()
        assert api.number("upload_bytes") == 0  # the clients have left
        answer = await api.post(target, [b" " * 999, b"x"], **JSON)
        assert answer.status == 400


async def test_a_stalled_upload_holds_its_part_of_the_limit_until_its_deadline(
    open_api, autojump_clock: MockClock
) -> None:
    async with (
        open_api("a", total_request_bytes=1000) as api,
        api.open("POST", "/v1/streams", [b" " * 1000, STALL], **JSON) as stalled,
    ):
        await trio.sleep(BODY_SECONDS - 1)
        assert api.number("upload_bytes") == 1000
        await stalled.until(lambda exchange: exchange.ended)
        assert stalled.status == 408
        assert api.number("upload_bytes") == 0


async def test_a_body_larger_than_the_limit_of_all_is_413_because_a_retry_cannot_help(
    open_api, autojump_clock: MockClock
) -> None:
    async with open_api("a", max_request_bytes=2000, total_request_bytes=1000) as api:
        for headers in ({}, {"Content_Length": "1001"}):
            assert (await api.post(body=[b" " * 1001], **JSON, **headers)).status == 413


@pytest.mark.parametrize(
    "target", ["/v1/streams", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/ui/chat"]
)
async def test_a_running_stream_holds_no_part_of_the_limit_and_its_request_counts_with_the_logs(
    open_api, target: str, autojump_clock: MockClock
) -> None:
    async with open_api(trio.Event(), total_request_bytes=120_000) as api:
        for count in (1, 2, 3):
            exchange = api.open("POST", target, ROUTES[target] % (b"x" * 100_000), **JSON)
            async with exchange:
                await wait_all_tasks_blocked()
                assert api.number("upload_bytes") == 0
                assert api.number("log_bytes") > 100_000
                assert api.number("streams_running") in {1, count}


@pytest.mark.parametrize("body", [b"{", b'{"input":1}', b'{"input":""}', b"\xff"])
async def test_a_refused_body_is_released(open_api, body: bytes, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        for target in ROUTES:
            assert (await api.post(target, body, **JSON)).status >= 400
            assert api.number("upload_bytes") == 0


@pytest.mark.parametrize("sizes", [(), (1,), (65_536, 1), (65_535, 2), (1, 300_000, 7), (40_000,) * 10])
def test_a_body_holds_every_byte_in_order_and_is_freed_although_something_refers_to_it(sizes: tuple[int, ...]) -> None:
    metrics = Metrics()
    uploads = Uploads(total := sum(sizes), metrics)
    kept: list[memoryview] = []
    pieces = [bytes([number]) * size for number, size in enumerate(sizes)]
    with uploads.upload() as upload:
        for piece in pieces:
            upload.add(piece)
        with pytest.raises(OverloadedError):
            upload.add(b"x")
        assert upload.parse(lambda body: [bytes(body), kept.append(body)][0]) == b"".join(pieces)
        assert metrics.upload_bytes == total
    assert metrics.upload_bytes == 0
    with pytest.raises(ValueError, match="released"):
        kept[0].tobytes()
    with pytest.raises(ValueError, match="closed"):
        upload.parse(bytes)


@pytest.mark.parametrize("target", ROUTES)
async def test_a_body_with_more_values_than_memory_for_them_is_refused_before_it_is_parsed(
    open_api, target: str, autojump_clock: MockClock
) -> None:
    async with open_api("a") as api:
        answer = await api.post(target, b'{"x":[' + b"{}," * MAX_VALUES + b"{}]}", **JSON)
        assert answer.status == 400
        assert b"the body has more than 250,000 JSON values" in answer.body
        assert api.number("upload_bytes") == 0


@pytest.mark.parametrize(("values", "is_refused"), [(MAX_VALUES, False), (MAX_VALUES + 1, True)])
def test_separators_in_strings_are_no_values(values: int, is_refused: bool) -> None:
    body = b'["' + b'\\\\,{[\\"' * 500_000 + b'"' + b",1" * (values - 1) + b"]"
    with Uploads(len(body), Metrics()).upload() as upload:
        upload.add(body)
        if is_refused:
            with pytest.raises(InvalidRequestError):
                upload.parse(bytes)
        else:
            assert upload.parse(bytes) == body
