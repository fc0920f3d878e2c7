"""Which proxy the environment names for a server."""

from __future__ import annotations

import pytest

from crucible_trio.errors import ConfigError
from crucible_trio.http import parse_url
from crucible_trio.http.proxies import find_proxy

PROXY = "http://proxy.test:3128"


def proxy_of(url: str, **environment: str) -> str | None:
    found = find_proxy(parse_url(url), environment)
    return None if found is None else str(found).rstrip("/")


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_a_proxy_is_used_for_its_scheme(name: str) -> None:
    assert proxy_of("http://model.test", **{name: PROXY}) == PROXY
    https = proxy_of("https://model.test", **{name: PROXY})
    assert https == (PROXY if name.lower() == "all_proxy" else None)


def test_the_more_specific_variable_and_lower_case_win() -> None:
    assert (
        proxy_of("http://model.test", ALL_PROXY="http://a", HTTP_PROXY="http://b", http_proxy="http://c") == "http://c"
    )
    assert proxy_of("http://model.test", ALL_PROXY="http://a", HTTP_PROXY="http://b") == "http://b"
    assert proxy_of("http://model.test", HTTP_PROXY="http://b", http_proxy="") is None
    assert proxy_of("https://model.test", HTTPS_PROXY="proxy.test:3128") == PROXY
    assert proxy_of("http://model.test") is None


def test_the_header_proxy_of_a_cgi_request_is_not_a_setting() -> None:
    assert proxy_of("http://model.test", REQUEST_METHOD="GET", HTTP_PROXY=PROXY) is None
    assert proxy_of("http://model.test", REQUEST_METHOD="GET", http_proxy=PROXY) == PROXY


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST", "localhost.", "api.localhost", "[::1]", "[::ffff:127.0.0.1]",
     "0.0.0.0", "[::]"],
)  # fmt: skip
@pytest.mark.parametrize("value", [PROXY, "socks://127.0.0.1:9", "nonsense://"])
def test_loopback_never_goes_through_a_proxy(host: str, value: str) -> None:
    assert proxy_of(f"http://{host}:8080", HTTP_PROXY=value, ALL_PROXY=value, NO_PROXY="") is None


@pytest.mark.parametrize(
    ("no_proxy", "url", "is_direct"),
    [
        ("*", "http://model.test", True),
        ("model.test", "http://model.test", True),
        ("MODEL.test", "http://model.TEST", True),
        ("model.test", "http://api.model.test", True),
        (".model.test", "http://api.model.test", True),
        (".model.test", "http://model.test", True),
        ("*.model.test", "http://api.model.test", True),
        ("model.test", "http://othermodel.test", False),
        ("api.model.test", "http://model.test", False),
        ("a, model.test ,b", "http://model.test", True),
        ("model.test:8080", "http://model.test:8080", True),
        ("model.test:8080", "http://model.test", False),
        ("model.test:80", "http://model.test", True),
        ("http://model.test", "http://model.test", True),
        ("10.0.0.0/8", "http://10.1.2.3", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("10.1.2.3", "http://10.1.2.3:8080", True),
        ("10.1.2.3:81", "http://10.1.2.3:8080", False),
        ("10.1.2.3", "http://10.1.2.30", False),
        ("fd00::/8", "http://[fd12::1]:8080", True),
        ("[fd00::]/8", "http://[fd12::1]:8080", True),
        ("[fd12::1]", "http://[fd12::1]:8080", True),
        ("[fd12::1]:8080", "http://[fd12::1]:8080", True),
        ("[fd12::1]:81", "http://[fd12::1]:8080", False),
        ("fd12::1", "http://[fd12::1]:8080", True),
        ("[::1],fd00::/8", "http://model.test", False),
        ("localhost,127.0.0.0/8", "http://model.test", False),
        ("test", "http://10.1.2.3", False),
        ("", "http://model.test", False),
        (",, ,.,*.", "http://model.test", False),
    ],
)
def test_no_proxy_names_the_servers_without_one(no_proxy: str, url: str, is_direct: bool) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        assert (proxy_of(url, ALL_PROXY=PROXY, **{name: no_proxy}) is None) == is_direct


@pytest.mark.parametrize("value", ["socks://h:1", "socks5://user:secret@h:1", "SOCKS5H://h", "ftp://h"])
def test_another_kind_of_proxy_is_refused_by_the_name_of_its_variable(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^ALL_PROXY names a proxy that is not an HTTP proxy") as caught:
        proxy_of("http://model.test", ALL_PROXY=value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("value", ["http://", "http://user:secret@", "://h", "http://h:port", "h ost", "http://[::1"])
def test_a_broken_proxy_url_is_refused_by_the_name_of_its_variable(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^http_proxy") as caught:
        proxy_of("http://model.test", http_proxy=value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
