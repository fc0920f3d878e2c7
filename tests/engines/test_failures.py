"""How the errors of an upstream server are found and translated."""

from __future__ import annotations

import json

import pytest

from crucible_trio.engines.upstream.failures import error_in_chunk, find_error, to_engine_error


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
        ({"code": 401, "message": "no"}, "upstream_rejected", False),
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
        (401, "upstream_rejected", False),
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
    assert (error.code, error.retryable) == (code, retryable)
    assert f"HTTP {status}" in error.message


def test_only_the_identifier_of_an_error_reaches_the_client() -> None:
    body = b'{"error":{"code":"invalid_api_key","type":"x y","message":"Incorrect API key provided: sk-1234"}}'
    assert to_engine_error(401, find_error(body)).message == (
        "The upstream server rejected the request (HTTP 401, invalid_api_key)."
    )
    body = b'{"error":{"code":"sk-1234","type":"the prompt was: hello"}}'
    assert to_engine_error(401, find_error(body)).message == "The upstream server rejected the request (HTTP 401)."


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b'"x"', b"\xff", b"[" * 10_000])
def test_an_error_body_need_not_be_json(body: bytes) -> None:
    assert to_engine_error(500, find_error(body)).message == "The upstream server failed (HTTP 500)."
