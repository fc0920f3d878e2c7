"""A page of another site cannot make a browser use this server, unless the site is allowed."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

KEYS = {"alice": "key"}
KEY = {"Authorization": "Bearer key"}
ALLOWED = "https://app.example"
BODY = {"input": "Why?"}

# Every route that starts, stops or reads.
GUARDED = [
    ("POST", "/v1/streams"),
    ("GET", "/v1/streams"),
    ("GET", "/v1/streams/{id}"),
    ("DELETE", "/v1/streams/{id}"),
    ("GET", "/v1/streams/{id}/events"),
    ("HEAD", "/v1/streams/{id}/events"),
    ("POST", "/v1/streams/{id}/cancel"),
    ("GET", "/v1/generate?prompt=x"),
    ("HEAD", "/v1/generate?prompt=x"),
    ("GET", "/v1/models"),
    ("GET", "/metrics"),
    ("OPTIONS", "/v1/streams"),
]


async def status(api, method: str, target: str, **headers: str) -> int:
    answer = await api.ask(method, target, BODY if method == "POST" else b"", **headers)
    if answer.status == 403:
        assert answer.error["code"] == "forbidden"
    return answer.status


@pytest.mark.parametrize("keys", [{}, KEYS])
@pytest.mark.parametrize(
    "page",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://localhost:8001"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "localhost"},
        {"Origin": "file://localhost"},
        {"Origin": "http://"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Origin": "http://localhost", "Sec_Fetch_Site": "cross-site"},
        {"Origin": "https://evil.example", "Sec_Fetch_Site": "same-origin"},
        {"Origin": f"{ALLOWED}.evil.example"},
        {"Origin": ALLOWED.replace("https", "http")},
    ],
)
async def test_a_foreign_page_is_403_on_every_route_that_starts_stops_or_reads(
    open_api, keys, page, autojump_clock: MockClock
) -> None:
    async with open_api("a", keys=keys, allowed_origins=(ALLOWED,)) as api:
        stream = (await api.post(body=BODY, **KEY)).stream_id
        for method, target in GUARDED:
            assert await status(api, method, target.format(id=stream), **page, **KEY) == 403, (method, target)
        for path in ("/healthz", "/readyz"):
            assert await status(api, "GET", path, **page) == 200
        assert [entry["id"] for entry in (await api.get("/v1/streams", **KEY)).json["data"]] == [stream]


@pytest.mark.parametrize("keys", [{}, KEYS])
@pytest.mark.parametrize(
    "page",
    [
        {},
        {"Sec_Fetch_Site": "same-origin"},
        {"Sec_Fetch_Site": "none"},
        {"Sec_Fetch_Site": "same-site"},
        {"Origin": "http://localhost"},
        {"Origin": "https://localhost", "Sec_Fetch_Site": "same-origin"},
        {"Origin": "http://LOCALHOST"},
        {"Origin": "http://localhost:8000", "Host": "localhost:8000"},
        {"Origin": "http://LocalHost:8000", "Host": "localhost:8000"},
        {"Origin": "http://localhost", "Host": "localhost:80"},
        {"Origin": "http://[::1]:8000", "Host": "[::1]:8000"},
        {"Origin": ALLOWED},
        {"Origin": ALLOWED, "Sec_Fetch_Site": "cross-site"},
    ],
)
async def test_our_own_page_and_an_allowed_one_may_do_everything(
    open_api, keys, page, autojump_clock: MockClock
) -> None:
    async with open_api("a", keys=keys, allowed_origins=(ALLOWED,)) as api:
        for method, target in GUARDED:
            stream = (await api.post(body=BODY, **KEY)).stream_id
            assert await status(api, method, target.format(id=stream), **page, **KEY) < 300, (method, target)


async def test_behind_a_proxy_that_ends_tls_the_scheme_does_not_count(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", keys=KEYS) as api:
        for origin, host, expected in (
            ("https://api.example", "api.example", 200),
            ("https://api.example", "api.example:443", 200),
            ("https://api.example:8443", "api.example:8443", 200),
            ("https://api.example:8443", "api.example", 403),
            ("https://api.example", "other.example", 403),
            ("ftp://api.example", "api.example", 403),
        ):
            assert await status(api, "GET", "/v1/streams", Origin=origin, Host=host, **KEY) == expected, (origin, host)


# DNS rebinding


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("app.localhost", True),
        ("127.0.0.1", True),
        ("127.0.0.1:8000", True),
        ("127.1.2.3", True),
        ("[::1]", True),
        ("[::1]:8000", True),
        ("box.example", True),
        ("Box.Example:8000", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("evil-localhost", False),
        ("127.0.0.1.evil.example", False),
        ("sub.box.example", False),
        ("10.0.0.1", True),
        ("0.0.0.0:8000", True),
        ("[::2]:8000", True),
        ("[::1", False),
        ("127.1", False),
        ("2130706433", False),
        ("a b", False),
        (":8000", False),
        ("\xe4.example", False),
    ],
)
async def test_without_keys_the_host_must_be_an_address_a_loopback_name_or_a_configured_one(
    open_api, host, ours, autojump_clock: MockClock
) -> None:
    async with open_api("a", server_names=("box.example",)) as api:
        stream = (await api.post(body=BODY)).stream_id
        for method, target in GUARDED:
            if ours and method == "DELETE":
                continue
            answer = await status(api, method, target.format(id=stream), Host=host)
            assert (answer < 300) if ours else (answer == 403), (method, target, answer)
        # To its browser a page on the foreign name is same-origin. The server must still refuse it.
        page = {"Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
        assert await status(api, "GET", "/v1/streams", Host=host, **page) == (200 if ours else 403)
        for path in ("/healthz", "/readyz"):
            assert await status(api, "GET", path, Host=host) == 200


async def test_a_refused_host_or_origin_names_the_setting_that_allows_it(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        answer = await api.get("/v1/streams", Host="model.internal:8000")
        assert answer.error["message"] == (
            "this server does not answer to the host 'model.internal:8000': add its name to the setting server_names"
        )
        answer = await api.get("/v1/streams", Origin="https://chat.example")
        assert answer.error["message"] == (
            "the origin 'https://chat.example' is not allowed: add it to the setting allowed_origins"
        )


async def test_with_keys_any_host_is_answered(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", keys=KEYS) as api:
        for host in ("evil.example", "10.0.0.1:8000", "[::2]"):
            assert await status(api, "GET", "/v1/streams", Host=host, **KEY) == 200
            assert await status(api, "GET", "/v1/streams", Host=host) == 401


async def test_http_1_0_may_have_no_host(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        for headers, expected in (
            ({}, 200),
            ({"Origin": "http://localhost"}, 403),
            ({"Sec_Fetch_Site": "cross-site"}, 403),
        ):
            async with api.open("GET", "/v1/streams", http_version="1.0", Host="", **headers) as answer:
                await answer.until(lambda exchange: exchange.ended)
                assert answer.status == expected
        async with api.open(
            "POST", "/v1/streams", BODY, http_version="1.0", Host="", Accept="text/event-stream"
        ) as answer:
            await answer.until(lambda exchange: exchange.ended)
            assert answer.types[-1] == "stream.completed"


# CORS


CORS_HEADERS = (
    "access-control-allow-origin",
    "access-control-allow-methods",
    "access-control-allow-headers",
    "access-control-expose-headers",
    "access-control-max-age",
    "vary",
)
SENDS = [
    "Last-Event-ID",
    "Idempotency-Key",
    "Authorization",
    "X-Api-Key",
    "Anthropic-Version",
    "Anthropic-Beta",
    "Anthropic-Dangerous-Direct-Browser-Access",
    "Content-Type",
    "User-Agent",
]
READS = [
    "Location",
    "Crucible-Stream",
    "Crucible-Replayed",
    "Crucible-Ignored",
    "Crucible-Error",
    "Retry-After",
    "X-Should-Retry",
    "Request-Id",
    "X-Workflow-Run-Id",
    "X-Workflow-Stream-Tail-Index",
]
PREFLIGHT = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "last-event-id"}


async def test_cors_is_off_by_default(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a") as api:
        for answer in (
            await api.ask("OPTIONS", "/v1/streams", **PREFLIGHT),
            await api.ask("OPTIONS", "/v1/streams", Origin="http://localhost", **PREFLIGHT),
            await api.ask("OPTIONS", "/v1/streams", Origin=ALLOWED, **PREFLIGHT),
            await api.get("/v1/streams", Origin="http://localhost"),
        ):
            assert not any(answer.has_header(name) for name in CORS_HEADERS)


async def test_a_preflight_of_an_allowed_page_is_204_and_lists_what_it_may_send(
    open_api, autojump_clock: MockClock
) -> None:
    # A preflight carries no key.
    async with open_api("a", keys=KEYS, allowed_origins=(ALLOWED, "https://other.example")) as api:
        stream = (await api.post(body=BODY, **KEY)).stream_id
        for path in (
            "/v1/streams",
            f"/v1/streams/{stream}",
            f"/v1/streams/{stream}/events",
            "/v1/generate",
            "/metrics",
        ):
            answer = await api.ask("OPTIONS", path, Origin=ALLOWED, Sec_Fetch_Site="cross-site", **PREFLIGHT)
            assert (answer.status, answer.body) == (204, b"")
            assert {name: answer.header(name) for name in CORS_HEADERS} == {
                "access-control-allow-origin": ALLOWED,
                "access-control-allow-methods": "GET, POST, DELETE",
                "access-control-allow-headers": ", ".join(SENDS),
                "access-control-expose-headers": ", ".join(READS),
                "access-control-max-age": "600",
                "vary": "Origin",
            }
        own = await api.ask("OPTIONS", "/v1/streams", Origin="http://localhost", **PREFLIGHT)
        assert own.status == 204
        assert [name for name in CORS_HEADERS if own.has_header(name)] == ["vary"]
        foreign = await api.ask("OPTIONS", "/v1/streams", Origin="https://evil.example", **PREFLIGHT)
        assert foreign.status == 403
        assert [name for name in CORS_HEADERS if foreign.has_header(name)] == ["vary"]


async def test_an_allowed_page_may_send_the_headers_of_openais_sdks_and_no_others(
    open_api, autojump_clock: MockClock
) -> None:
    asked = {
        "X-Stainless-Lang, x-stainless-retry-count,x-custom": ["x-stainless-lang", "x-stainless-retry-count"],
        "x-stainless-, x-stainless, x-stainless-a b, a-x-stainless-b, x-stainless-\xe9": [],
        "": [],
    }
    async with open_api("a", allowed_origins=(ALLOWED,)) as api:
        for names, more in asked.items():
            headers = {"Origin": ALLOWED, "Access_Control_Request_Headers": names}
            answer = await api.ask("OPTIONS", "/v1/responses", **headers)
            assert answer.header("access-control-allow-headers").split(", ") == [*SENDS, *more]


async def test_an_allowed_page_may_read_every_response_and_error(open_api, autojump_clock: MockClock) -> None:
    async with open_api("a", keys=KEYS, allowed_origins=(ALLOWED,)) as api:
        stream = (await api.post(body=BODY, **KEY)).stream_id
        for method, target, headers, expected in (
            ("POST", "/v1/streams", KEY, 201),
            ("POST", "/v1/streams", KEY | {"Accept": "text/event-stream"}, 200),
            ("GET", f"/v1/streams/{stream}/events", KEY, 200),
            ("GET", f"/v1/streams/{stream}/events", KEY | {"Last_Event_Id": f"{stream}.3"}, 204),
            ("GET", "/v1/streams", {}, 401),
            ("GET", "/v1/streams/x", KEY, 404),
            ("GET", "/v1/generate", KEY, 400),
        ):
            body = BODY if method == "POST" else b""
            answer = await api.ask(method, target, body, Origin=ALLOWED, Sec_Fetch_Site="cross-site", **headers)
            assert answer.status == expected
            assert answer.header("access-control-allow-origin") == ALLOWED
            assert answer.header("vary") == "Origin"
            exposed = answer.header("access-control-expose-headers").split(", ")
            assert exposed == READS
            plain = await api.ask(method, target, body, **headers)
            assert plain.header("vary") == "Origin"
            assert not plain.has_header("access-control-allow-origin")
