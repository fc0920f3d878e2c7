"""URLs."""

from __future__ import annotations

import pytest

from crucible_trio.http import parse_url
from crucible_trio.http.headers import Headers, encode_headers


@pytest.mark.parametrize(
    ("text", "origin", "host", "target"),
    [
        ("http://127.0.0.1:8080/v1", ("http", "127.0.0.1", 8080), "127.0.0.1:8080", "/v1"),
        ("HTTPS://API.Example.org", ("https", "api.example.org", 443), "api.example.org", "/"),
        ("https://h:443/v1/", ("https", "h", 443), "h", "/v1/"),
        ("http://h:443/", ("http", "h", 443), "h:443", "/"),
        ("http://[::1]:8080/v1?a=1&b=%20", ("http", "::1", 8080), "[::1]:8080", "/v1?a=1&b=%20"),
        ("http://[::1]/", ("http", "::1", 80), "[::1]", "/"),
        ("http://h?api-version=1#part", ("http", "h", 80), "h", "/?api-version=1"),
        ("http://bücher.example/ü?q=ü", ("http", "xn--bcher-kva.example", 80), "xn--bcher-kva.example",
         "/%C3%BC?q=%C3%BC"),
        ("http://h/a%2Fb%zz", ("http", "h", 80), "h", "/a%2Fb%zz"),
    ],
)  # fmt: skip
def test_a_url_has_its_parts(text: str, origin: tuple[str, str, int], host: str, target: str) -> None:
    url = parse_url(text)
    assert (url.origin, url.host_header, url.target) == (origin, host, target)


@pytest.mark.parametrize(
    "text",
    ["", "127.0.0.1:8080", "ftp://h/", "http://", "http:///v1", "http://a:b", "http://h:0", "http://h:65536", "http://[::1",
     "http://h/a b", "http://h/\r\nX: y", "http://h\t/", "http://h\\@other/", "http://a..b/", f"http://{'a' * 64}.org/",
     "http://h\u2100x/", "unix:/run/x.sock"],
)  # fmt: skip
def test_an_invalid_url_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_url(text)
    assert not text or text not in str(caught.value)


def test_a_user_and_a_password_are_decoded_and_never_shown() -> None:
    url = parse_url("http://us%40er:pass%3Aword@h:8080/v1")
    assert (url.user, url.password) == ("us@er", "pass:word")
    assert str(url) == "http://h:8080/v1"
    assert "word" not in repr(url)
    assert parse_url("http://h/").user is None


def test_a_path_is_appended_and_the_query_kept() -> None:
    url = parse_url("http://h/v1/?api-version=2")
    assert str(url.join("chat/completions")) == "http://h/v1/chat/completions?api-version=2"
    assert str(parse_url("http://h").join("a b?", "x=1")) == "http://h/a%20b%3F?x=1"
    assert str(url.without_query()) == "http://h/v1/"


def test_headers_are_found_in_any_case_and_joined() -> None:
    headers = Headers([("X-One", "1"), ("x-one", "2"), ("Two", "")])
    assert headers["X-ONE"] == "1, 2"
    assert "two" in headers
    assert 2 not in headers
    assert headers.get("three") is None
    assert dict(headers) == {"x-one": "1, 2", "two": ""}
    assert len(headers) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("X", "a\r\nY: b"), ("X", "a\0"), ("X\n", "a"), ("", "a"), ("X y", "a"), ("X:", "a"), ("X", "\u20ac")],
)  # fmt: skip
def test_a_header_that_would_forge_another_is_refused_and_not_quoted(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="cannot be sent") as caught:
        encode_headers({name: value})
    assert "Y: b" not in str(caught.value)
