"""How the errors of an upstream server are found and translated."""

from __future__ import annotations

import json

import pytest

from crucible_trio.engines.upstream.failures import error_in_chunk, find_error, to_engine_error
from crucible_trio.errors import EngineError, UpstreamReport

from .reads import read


@pytest.mark.parametrize(
    ("chunk", "code", "retryable"),
    [
        ({"error": {"message": "boom", "code": 500}}, "upstream_error", True),
        ({"error": "boom"}, "upstream_error", True),
        ({"error": {"code": 400, "message": "too long"}}, "upstream_rejected", False),
        ({"error": {"code": "400", "message": "too long"}}, "upstream_rejected", False),
        ({"error": {"code": 400.0, "message": "too long"}}, "upstream_rejected", False),
        ({"error": {"code": "context_length_exceeded"}}, "upstream_rejected", False),
        ({"error": {"code": None, "type": "invalid_request_error"}}, "upstream_rejected", False),
        ({"error": {"code": 429}}, "upstream_refused", True),
        ({"error": {"code": "429"}}, "upstream_refused", True),
        ({"error": {"status": 503}}, "upstream_refused", True),
        ({"error": {"code": 529}}, "upstream_refused", True),
        ({"type": "error", "error": {"type": "overloaded_error", "message": "x"}}, "upstream_refused", True),
        ({"error": {"type": "RateLimit_Error"}}, "upstream_error", True),
        ({"error": {"type": "rate_limit_error"}}, "upstream_refused", True),
        ({"object": "error", "message": "too long", "code": 400}, "upstream_rejected", False),
        ({"object": "error", "message": "too long", "type": "BadRequestError"}, "upstream_rejected", False),
        ({"type": "error", "message": "boom"}, "upstream_error", True),
        ({"choices": None, "error_type": "overloaded", "error_message": "x"}, "upstream_error", True),
        ({"choices": [], "error_message": "x"}, "upstream_error", True),
        ({"error_code": 429, "error_msg": "x"}, "upstream_refused", True),
        ({"detail": "Not authenticated"}, "upstream_error", True),
        ({"errors": [{"message": "x"}]}, "upstream_error", True),
        ({"code": 401, "message": "no"}, "upstream_unauthorized", False),
        ({"error": {"type": "permission_error", "message": "no"}}, "upstream_unauthorized", False),
        ({"status_code": 500, "message": "boom"}, "upstream_error", True),
        ({"code": "internal", "message": "boom"}, "upstream_error", True),
        ({"error": True}, "upstream_error", True),
        ({"error": {"code": float("nan")}}, "upstream_error", True),
    ],
)
def test_an_error_inside_the_stream_is_found(chunk: dict[str, object], code: str, retryable: bool) -> None:
    error = error_in_chunk(chunk)
    assert error is not None
    result = to_engine_error(None, error)
    assert (result.code, result.retryable) == (code, retryable)
    assert "too long" not in result.message


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"error": None},
        {"error": ""},
        {"error": {}},
        {"error": False},
        {"error": {"code": 0, "message": ""}},
        {"error": {"code": None, "message": None}},
        {"type": "ping"},
        {"status": "ok", "message": "alive"},
        {"code": 0, "message": "success"},
        {"code": 200, "message": "success"},
        {"code": "ok", "message": "success"},
        {"choices": [{"delta": {}}], "error_code": 0, "error_message": "none", "code": 400, "message": "x"},
        {"error_code": 0, "error_msg": ""},
    ],
)
def test_a_chunk_without_an_error_has_none(chunk: dict[str, object]) -> None:
    assert error_in_chunk(chunk) is None


def test_the_error_is_found_in_a_body() -> None:
    for body in ({"error": {"code": 7}}, {"code": 7}, {"error": None, "code": 7}):
        error = find_error(json.dumps(body))
        assert isinstance(error, dict)
        assert error["code"] == 7


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        (301, "upstream_rejected", False),
        (400, "upstream_rejected", False),
        (401, "upstream_unauthorized", False),
        (403, "upstream_unauthorized", False),
        (404, "upstream_rejected", False),
        (408, "upstream_error", True),
        (429, "upstream_refused", True),
        (500, "upstream_error", True),
        (502, "upstream_error", True),
        (503, "upstream_refused", True),
    ],
)
def test_each_status_has_its_code(status: int, code: str, retryable: bool) -> None:
    error = to_engine_error(status, None)
    assert (error.code, error.retryable, error.status, error.upstream) == (code, retryable, status, None)
    assert f"HTTP {status}" in error.message


def test_our_own_message_has_only_the_identifier_of_an_error() -> None:
    body = b'{"error":{"code":"invalid_value","type":"x y","message":"The prompt was: hello"}}'
    assert to_engine_error(400, find_error(body)).message == (
        "The upstream server rejected the request (HTTP 400, invalid_value)."
    )
    body = b'{"error":{"code":"sk-1234","type":"the prompt was: hello"}}'
    assert to_engine_error(400, find_error(body)).message == "The upstream server rejected the request (HTTP 400)."


@pytest.mark.parametrize("status", [401, 403])
def test_an_error_about_our_key_says_nothing_of_the_body(status: int) -> None:
    body = b'{"error":{"code":"invalid_api_key","message":"Incorrect API key provided: sk-1234","param":"p"}}'
    error = to_engine_error(status, find_error(body))
    assert str(error) == (
        f"upstream_unauthorized: The upstream server does not accept this server's key (HTTP {status})."
    )
    assert error.upstream is None


@pytest.mark.parametrize(
    ("error", "report"),
    [
        (
            {"message": "Too long.", "type": "invalid_request_error", "code": "context_length_exceeded", "param": "m"},
            UpstreamReport("Too long.", "invalid_request_error", "context_length_exceeded", "m"),
        ),
        ("Too long.", UpstreamReport("Too long.")),
        (
            {"object": "error", "message": "Too long.", "type": "BadRequestError", "param": None, "code": 400},
            UpstreamReport("Too long.", "BadRequestError"),
        ),
        (
            {"error_message": "Too long.", "error_type": "t", "error_code": "c"},
            UpstreamReport("Too long.", "t", "c"),
        ),
        ({"detail": "Too long.", "code": "400"}, UpstreamReport("Too long.")),
        ({"detail": [{"loc": ["body"]}], "message": ""}, UpstreamReport()),
        (
            {
                "detail": [
                    {"type": "missing", "loc": ["body", "m", 0], "msg": "Required", "input": {}},
                    "b",
                ]
            },
            UpstreamReport("body.m.0: Required; b"),
        ),
        (
            {"object": "error", "message": {"detail": [{"loc": ["body", "x"], "msg": "Extra"}]}, "type": "t"},
            UpstreamReport("body.x: Extra", "t"),
        ),
        ({"detail": {"message": "Too long."}}, UpstreamReport("Too long.")),
        (["Too long."], None),
        (None, None),
    ],
)
@pytest.mark.parametrize("status", [400, 404, 408, 413, 422, 429])
def test_the_servers_words_are_kept_if_it_blames_the_request(status: int, error: object, report: object) -> None:
    assert to_engine_error(status, error).upstream == report
    assert to_engine_error(500, error).upstream is None
    assert to_engine_error(302, error).upstream is None


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 429}, 429),
        ({"code": "context_length_exceeded"}, 400),
        ({"type": "rate_limit_error"}, 429),
        ({"message": "boom"}, None),
    ],
)
def test_an_error_inside_the_stream_has_a_status_if_it_names_one(error: object, status: int | None) -> None:
    assert to_engine_error(None, error).status == status


def test_the_error_in_a_list_of_one_is_read() -> None:
    error = {"code": 400, "message": "Bad field.", "status": "INVALID_ARGUMENT"}
    assert to_engine_error(400, find_error(json.dumps([{"error": error}]))).upstream == UpstreamReport("Bad field.")
    body = json.dumps([{"error": error}]).encode()
    for stream in (b"data: " + body + b"\n\n", body):
        text, failure = read(stream)
        assert text == []
        assert isinstance(failure, EngineError)
        assert (failure.code, failure.upstream) == ("upstream_rejected", UpstreamReport("Bad field."))


def test_an_error_in_a_body_that_was_cut_keeps_the_beginning_of_its_message() -> None:
    message = 'Too \\ "long" \u00e9\u4e00: ' + "x\n" * 100
    body = json.dumps({"error": {"code": "c_d_e", "type": "t", "message": message, "param": None}}).encode()
    begin = body.index(b"Too")
    for end in range(begin + 1, len(body)):
        report = to_engine_error(400, find_error(body[:end])).upstream
        assert report is not None
        assert (report.type, report.code) == ("t", "c_d_e")
        assert message.startswith(report.message or "")
        assert len(report.message or "") >= (end - begin) // 4 - 8
    body = json.dumps({"detail": [{"loc": ["body", "x"], "msg": "No", "input": {"a": 1, "b": "y" * 99}}]}).encode()
    for end in range(body.index(b"No") + 4, len(body)):
        assert to_engine_error(422, find_error(body[:end])).upstream == UpstreamReport("body.x: No")


def test_retry_after_is_kept() -> None:
    assert to_engine_error(429, None, retry_after=30.0).retry_after == 30.0


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"\xff", b"[" * 10_000])
def test_an_error_body_need_not_be_json(body: bytes) -> None:
    assert to_engine_error(500, find_error(body)).message == "The upstream server failed (HTTP 500)."
