"""A bad request is refused with a status under 500, in JSON, and the error names the field at fault."""

from __future__ import annotations

import json

import pytest
import quart
import trio
from trio.testing import MockClock

from crucible_trio.apis.kit.bodies import BODY_SECONDS

JSON = {"Content_Type": "application/json"}
NOT_JSON = "the body is not valid JSON in UTF-8"


async def refused(api, body: bytes, status: int = 400, **headers: str) -> dict:
    """Send a body in both ways to start. Both must refuse it, and no stream may start."""
    errors = []
    for accept in ("*/*", "text/event-stream"):
        answer = await api.post(body=body, Accept=accept, **(JSON | headers))
        assert answer.status == status, answer.body
        errors.append(answer.error)
    assert errors[0] == errors[1]
    assert (await api.get("/v1/streams")).json == {"data": []}
    return errors[0]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"nonsense",
        b'{"input":"a"',
        b'{"input":"a',
        b'{"input":"a"} {}',
        b'{"input":"a",}',
        b"{'input':'a'}",
        b'{"input":"a" "mode":"deep"}',
        b'{"input":"a\xff"}',
        b'{"input":"a\xed\xa0\x80"}',  # a surrogate in UTF-8
        b'{"input":"a\n"}',
        b'{"input":"a\0"}',
        b'{"input":"\\ud800"}',
        b'{"\\ud800":1}',
        b'{"input":"a","grace_seconds":NaN}',
        b'{"input":"a","grace_seconds":Infinity}',
        b'{"input":"a","max_output_tokens":01}',
        b'{"input":"a","max_output_tokens":+1}',
        b'\xef\xbb\xbf{"input":"a"}',
        '{"input":"a"}'.encode("utf-16"),
        '{"input":"a"}'.encode("utf-16-be"),
        '{"input":"a"}'.encode("utf-32"),
        b"\x1f\x8b\x08\x00",
        b"input=a",
    ],
)
async def test_a_body_that_is_not_json_in_utf_8_is_400(open_api, body, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        error = await refused(api, body)
        assert error == {"code": "invalid_request", "message": NOT_JSON}


@pytest.mark.parametrize("text", [rb"\udc00x", rb"\ud800\ud800", rb"\ud800 and more"])
async def test_half_a_surrogate_pair_is_400_and_says_so(open_api, text, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        error = await refused(api, b'{"input":"' + text + b'"}')
    message = r"the body has half a surrogate pair (\ud800 to \udfff)"
    assert error == {"code": "invalid_request", "message": message}


async def test_a_body_nested_too_deeply_says_so(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        error = await refused(api, b'{"extra":{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}")
    assert error == {"code": "invalid_request", "message": "the body is nested too deeply"}


async def test_every_prefix_of_a_good_body_is_400(open_api, autojump_clock: MockClock) -> None:
    good = json.dumps({"input": [{"role": "user", "content": "ä\n"}], "grace_seconds": 1.5, "trace": "none"}).encode()
    async with open_api("a") as api:
        for length in range(len(good)):
            answer = await api.post(body=good[:length], **JSON)
            assert answer.status == 400
            assert answer.error["code"] == "invalid_request"
        assert (await api.post(body=good, **JSON)).status == 201


@pytest.mark.parametrize(
    "opening",
    [b"[", b'{"":', b'{"input":', b'{"input":[', b'{"input":[{"content":', b'[{"a":', b'{"sampling":{"stop":['],
)
async def test_deep_nesting_is_400(open_api, opening, autojump_clock: MockClock) -> None:
    async with open_api("a", max_request_bytes=4_000_000) as api:
        for body in (opening * 100_000, opening + b"[" * 100_000, b'{"input":"a","x":' + opening * 100_000):
            answer = await api.post(body=body, **JSON)
            assert answer.status == 400
            assert answer.error["code"] == "invalid_request"


@pytest.mark.parametrize("body", [b"null", b"1", b'"a"', b"[]", b"true", b'[{"input":"a"}]'])
async def test_a_body_that_is_not_an_object_is_400(open_api, body, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        error = await refused(api, body)
        assert error["message"].startswith("Expected `object`")
        assert "param" not in error


WRONG_VALUES = [None, True, 1, 1.5, -1, "x", "", [], [1], {}, {"x": 1}]
# The values that each field accepts. Any other value must be refused, and the error must name the field.
RIGHT = {
    "input": ["x"],
    "mode": [],
    "model": [None],
    "max_output_tokens": [None, 1],
    "sampling": [{}],
    "trace": [],
    "on_disconnect": [None],
    "grace_seconds": [None, 1, 1.5],
    "deadlines": [{}],
    "sampling.temperature": [None, 1, 1.5],
    "sampling.top_p": [None, 1],
    "sampling.seed": [None, 1],
    "sampling.stop": [None, []],
    "deadlines.first_token_seconds": [None, 1, 1.5],
    "deadlines.idle_seconds": [None, 1, 1.5],
    "deadlines.total_seconds": [None, 1, 1.5],
}


@pytest.mark.parametrize("field", RIGHT)
async def test_a_value_of_a_wrong_type_is_400_and_names_the_field(
    open_api, scripted, field, autojump_clock: MockClock
) -> None:
    outer, _, inner = field.partition(".")
    engine = scripted("a", sampling=["temperature", "top_p", "seed", "stop"])
    async with open_api(engine=engine) as api:
        for value in WRONG_VALUES:
            answer = await api.post(body={"input": "a", outer: {inner: value} if inner else value})
            if any(value is right or (value == right and type(value) is type(right)) for right in RIGHT[field]):
                assert answer.status == 201, (value, answer.body)
            else:
                assert answer.status == 400, value
                assert answer.error["code"] == "invalid_request"
                param = answer.error["param"]
                assert param == field or param.startswith((f"{field}.", f"{field}[")), (value, param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "input"),
        ({"mode": "deep"}, "input"),
        ({"Input": "a"}, "Input"),
        ({"input": "a", "x": 1}, "x"),
        ({"input": "a", "stream": True}, "stream"),
        ({"input": "a", "a.b c": 1}, "a.b c"),
        ({"input": "a", "ä\n": 1}, "ä\n"),
        ({"input": "a", "sampling": {"x": 1}}, "sampling.x"),
        ({"input": "a", "sampling": {"top_k": 1}}, "sampling.top_k"),
        ({"input": "a", "deadlines": {"x": 1}}, "deadlines.x"),
        ({"input": [{"role": "user", "content": "a", "name": "x"}]}, "input[0].name"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "user"}]}, "input[1].content"),
        ({"input": [{"content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "tool", "content": "a"}]}, "input[0].tool_call_id"),
        ({"input": [{"role": "tool", "content": "a", "tool_call_id": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": "a", "tool_call_id": "x"}]}, "input[0].tool_call_id"),
        ({"input": [{"role": "user", "content": "a", "reasoning": "x"}]}, "input[0].reasoning"),
        ({"input": [{"role": "assistant", "content": "a", "reasoning": "x"}]}, "input[0].reasoning"),
        (
            {"input": [{"role": "assistant", "tool_calls": [{"id": "a", "name": "b"}]}]},
            "input[0].tool_calls[0].arguments",
        ),
        (
            {"input": [{"role": "assistant", "tool_calls": [{"id": "a", "name": "b", "arguments": "{"}]}]},
            "input[0].tool_calls",
        ),
        ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "image", "url": ""}]}]}, "input[0].content[0].url"),
        ({"input": [{"role": "user", "content": [{"type": "image", "url": "file:///x"}]}]}, "input[0].content[0].url"),
        (
            {"input": [{"role": "user", "content": [{"type": "image", "url": "data:text/plain,x"}]}]},
            "input[0].content[0].url",
        ),
        ({"input": [{"role": "user", "content": [{"type": "file", "url": "AAAA"}]}]}, "input[0].content[0].url"),
        ({"input": [{"role": "user", "content": [{"type": "image", "url": "data:,"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "file", "url": "data:,"}]}]}, "input[0].content[0]"),
        (
            {"input": [{"role": "user", "content": [{"type": "audio", "data": "A", "format": "wav"}]}]},
            "input[0].content[0]",
        ),
        ({"input": "a", "parameters": {"tools": [{"name": "x"}]}}, "parameters.tools"),
        ({"input": "a", "parameters": {"tool_choice": "required"}}, "parameters.tool_choice"),
        ({"input": "a", "parameters": {"response_format": {"type": "json_object"}}}, "parameters.response_format"),
        ({"input": "a", "parameters": {"logprobs": True}}, "parameters.logprobs"),
        ({"input": "a", "parameters": {"verbosity": "low"}}, "parameters.verbosity"),
        ({"input": "a", "extra": {"top_a": 1}}, "extra.top_a"),
        ({"input": [{"role": "user", "content": ""}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": ["a"]}]}, "input[0].content[0]"),
        ({"input": ["a"]}, "input[0]"),
        ({"input": "a", "mode": "fast"}, "mode"),
        ({"input": "a", "trace": "all"}, "trace"),
        ({"input": "a", "on_disconnect": "wait"}, "on_disconnect"),
        ({"input": "a", "model": "none"}, "model"),
        ({"input": "a", "model": ""}, "model"),
        ({"input": "a", "model": "\u2028\0"}, "model"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "a", "max_output_tokens": 101}, "max_output_tokens"),
        ({"input": "a", "max_output_tokens": 10**18}, "max_output_tokens"),
        ({"input": "a", "max_output_tokens": 10**30}, "max_output_tokens"),
        ({"input": "a", "max_output_tokens": 10**4000}, "max_output_tokens"),
        ({"input": "a", "max_output_tokens": 1.0}, "max_output_tokens"),
        ({"input": "a", "grace_seconds": 51}, "grace_seconds"),
        ({"input": "a", "grace_seconds": 1e300}, "grace_seconds"),
        ({"input": "a", "grace_seconds": 10**4000}, "grace_seconds"),
        ({"input": "a", "grace_seconds": -0.001}, "grace_seconds"),
        ({"input": "a", "deadlines": {"first_token_seconds": 61}}, "deadlines.first_token_seconds"),
        ({"input": "a", "deadlines": {"idle_seconds": 61}}, "deadlines.idle_seconds"),
        ({"input": "a", "deadlines": {"total_seconds": 61}}, "deadlines.total_seconds"),
        ({"input": "a", "deadlines": {"total_seconds": -1}}, "deadlines.total_seconds"),
        ({"input": "a", "sampling": {"temperature": 2.1}}, "sampling.temperature"),
        ({"input": "a", "sampling": {"temperature": -0.1}}, "sampling.temperature"),
        ({"input": "a", "sampling": {"top_p": 0}}, "sampling.top_p"),
        ({"input": "a", "sampling": {"top_p": 1.1}}, "sampling.top_p"),
        ({"input": "a", "sampling": {"seed": 2**32}}, "sampling.seed"),
        ({"input": "a", "sampling": {"stop": [""]}}, "sampling.stop[0]"),
        ({"input": "a", "sampling": {"stop": ["x"] * 17}}, "sampling.stop"),
        ({"input": "a", "sampling": {"stop": ["x", "y" * 257]}}, "sampling.stop[1]"),
        # A valid value, but this engine does not support it.
        ({"input": "a", "sampling": {"temperature": 1, "stop": ["x"]}}, "sampling.stop"),
    ],
)
async def test_the_field_at_fault_is_named(open_api, scripted, body, param, autojump_clock: MockClock) -> None:
    engine = scripted("a", sampling=["temperature", "top_p", "seed"])
    async with open_api(engine=engine, max_output_tokens=100, max_grace_seconds=50, max_deadline_seconds=60) as api:
        error = await refused(api, json.dumps(body).encode())
        assert error["code"] == "invalid_request"
        assert error["param"] == param
    assert engine.requests == []


async def test_numbers_at_the_servers_maxima_are_accepted(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", max_output_tokens=100, max_grace_seconds=50, max_deadline_seconds=60) as api:
        deadlines = {"first_token_seconds": 60, "idle_seconds": 60, "total_seconds": 60}
        await api.start(max_output_tokens=100, grace_seconds=50, deadlines=deadlines)
        await api.start(max_output_tokens=1, grace_seconds=0, deadlines={"idle_seconds": 0})


async def test_a_split_surrogate_pair_and_control_characters_arrive_unchanged(
    open_api, scripted, autojump_clock: MockClock
) -> None:
    engine = scripted("a")
    async with open_api(engine=engine) as api:
        await api.post(body=b'{"input":"\\ud83d\\ude00 \\u0000 \\u2028"}', **JSON)
        await trio.sleep(1)
    assert engine.requests[0].input == "\U0001f600 \0 \u2028"


# The content type, and the size and speed of the body


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "text/json", "application/json2", "x", ";"],
)
async def test_a_body_of_another_type_is_415(open_api, content_type, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        headers = {} if content_type is None else {"Content_Type": content_type}
        answer = await api.post(body=b'{"input":"a"}', **headers)
        assert answer.status == 415
        assert answer.error["code"] == "unsupported_media_type"


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "br", "x\x1b[0m", "identity, gzip", "y" * 1000])
async def test_a_compressed_body_is_415_and_the_error_names_the_encoding(
    open_api, encoding, autojump_clock: MockClock
) -> None:
    async with open_api("a") as api:
        error = await refused(api, b"\x1f\x8b\x08\x00", 415, Content_Encoding=encoding)
        assert error["code"] == "unsupported_media_type"
        assert ascii(encoding)[1:-1][:64] in error["message"]
        assert len(error["message"]) < 150


@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
async def test_a_body_without_compression_may_say_so(open_api, encoding, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        headers = {"Content_Type": "application/json", "Content_Encoding": encoding}
        assert (await api.post(body=b'{"input":"a"}', **headers)).status == 201


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON", "application/json; charset=utf-8"])
async def test_json_may_have_parameters(open_api, content_type, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        assert (await api.post(body=b'{"input":"a"}', Content_Type=content_type)).status == 201


@pytest.mark.parametrize("limit", [1000, 17 * 1024 * 1024])
async def test_a_body_over_the_limit_is_413_however_it_is_sent(open_api, limit, autojump_clock: MockClock) -> None:
    async with open_api("a", max_request_bytes=limit) as api:
        for body, headers in (
            ([b'{"input":"'], {"Content_Length": str(limit + 1)}),
            ([b'{"input":"'], {"Content_Length": "9" * 30}),
            ([b"x" * (limit // 4)] * 5, {}),
            ([b"x" * (limit + 1)], {}),
            ([b"x" * (limit // 4), 0.1] * 5, {}),
            ([b"x" * 10, 0.1, b"x" * (limit + 1)], {}),
        ):
            answer = await api.post(body=body, **JSON, **headers)
            assert answer.status == 413
            assert answer.error == {"code": "body_too_large", "message": f"the body is larger than {limit} bytes"}
        fits = b'{"input":"%b"}' % (b"x" * (limit - 12))
        assert len(fits) == limit
        assert (await api.post(body=[fits[:7], fits[7:]], **JSON)).status == 201


async def test_an_unread_body_fills_no_more_memory_than_one_that_is_read(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", max_request_bytes=1000) as api:
        stream = (await api.stream()).stream_id
        requests = []

        async def remember(_sender: object, **_kwargs: object) -> None:
            requests.append(quart.request._get_current_object())

        with quart.request_started.connected_to(remember, api.app):
            async with api.open(
                "POST", "/v1/streams", [b"x" * 900] * 100 + [1000.0], allowance=0, Last_Event_Id=f"{stream}.0"
            ) as reader:
                await trio.sleep(1)
                assert reader.status == 200
                [request] = requests
                assert not request.body._data


@pytest.mark.parametrize("content_length", ["abc", "-1", "", "1.5", "1_0"])
async def test_a_content_length_that_is_not_a_number_is_400(
    open_api, content_length, autojump_clock: MockClock
) -> None:
    async with open_api("a") as api:
        answer = await api.post(body=b"x", Content_Length=content_length, **JSON)
        assert answer.status == 400


async def test_a_body_that_arrives_too_slowly_is_408(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        for body in ([b'{"input":', 1000.0], [1000.0, b"{}"], [b"x", 10.0] * 100):
            begin = trio.current_time()
            answer = await api.post(body=body, **JSON)
            assert answer.status == 408
            assert answer.error["code"] == "request_timeout"
            assert trio.current_time() - begin == BODY_SECONDS
        slow = [b'{"inp', BODY_SECONDS / 2, b'ut":"a"', BODY_SECONDS / 3, b"}"]
        assert (await api.post(body=slow, **JSON)).status == 201


@pytest.mark.parametrize("host", ["..", ".", "a..b", "x" * 64, f"{'x' * 64}:8000", "..:80"])
@pytest.mark.parametrize("path", ["/v1/streams", "/healthz", "/x"])
async def test_a_host_that_is_not_a_host_name_is_400(open_api, host, path, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        for method in ("GET", "POST", "HEAD"):
            answer = await api.ask(method, path, Host=host)
            assert (answer.status, answer.error["code"]) == (400, "bad_request")
            assert answer.ended
            assert not answer.cut_its_own_end


@pytest.mark.parametrize("headers", [{}, {"Idempotency_Key": "key"}])
@pytest.mark.parametrize(
    ("field", "param"),
    [
        ('"extra":%s', "extra"),
        ('"parameters":{"tools":[{"name":"a"},{"name":"b","parameters":%s}]}', "parameters.tools[1].parameters"),
        (
            '"parameters":{"response_format":{"type":"json_schema","name":"a","schema":%s}}',
            "parameters.response_format.schema",
        ),
    ],
)
async def test_free_json_may_be_a_hundred_levels_deep(
    open_api, field: str, param: str, headers: dict[str, str], autojump_clock: MockClock
) -> None:
    """Near Python's recursion limit a request could be decoded, and not be encoded again for its digest: 500."""
    async with open_api() as api:
        for depth in (101, *range(940, 1000)):
            value = '{"a":' * depth + "1" + "}" * depth
            answer = await api.post(body=b'{"input":"a",%s}' % (field % value).encode(), **(JSON | headers))
            assert answer.status == 400
            if depth < 900:
                assert answer.error["param"] == param
