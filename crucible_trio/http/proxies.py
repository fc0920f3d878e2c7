"""Finds the proxy for a server in the environment.

`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, in lower case, too, which wins. Loopback never goes through a
proxy: nobody means the proxy's own machine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Final, TypeAlias

from crucible_trio.errors import ConfigError
from crucible_trio.http.url import Url, parse_url

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_HINT: Final = "correct or unset it, or name this server in NO_PROXY"


def find_proxy(url: Url, environment: Mapping[str, str]) -> Url | None:
    """The proxy for a server. None: connect to it directly.

    Args:
        url: The server.
        environment: Such as `os.environ`.

    Raises:
        ConfigError: The variable names a proxy of another kind, or is not a URL. The message does not quote it.
    """
    if is_loopback(url.host) or _is_excluded(url, _value(environment, "no_proxy")[1]):
        return None
    for variable in (f"{url.scheme}_proxy", "all_proxy"):
        if variable == "http_proxy" and "REQUEST_METHOD" in environment:
            # In a CGI program HTTP_PROXY is the header `Proxy` of a request.
            environment = {name: value for name, value in environment.items() if name != "HTTP_PROXY"}
        name, value = _value(environment, variable)
        if value:
            return _parse_proxy(name, value)
    return None


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, by its name or address. Names are not looked up."""
    host = host.rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _parse_address(host)
    # Connecting to the unspecified address reaches this machine, too.
    return address is not None and (address.is_loopback or address.is_unspecified)


def _parse_proxy(name: str, value: str) -> Url:
    scheme, separator, _ = value.partition("://")
    if separator and scheme.lower() not in {"http", "https"}:
        message = f"{name} names a proxy that is not an HTTP proxy (http:// or https://): {_HINT}"
        raise ConfigError(message)
    try:
        return parse_url(value if separator else f"http://{value}")
    except ValueError as error:
        message = f"{name} is not the URL of a proxy, such as http://proxy.example.org:3128: {_HINT}"
        raise ConfigError(message) from error


def _value(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    for written in (name, name.upper()):
        if written in environment:
            return written, environment[written].strip()
    return name, ""


def _is_excluded(url: Url, no_proxy: str) -> bool:
    return any(_matches(entry.strip().lower(), url) for entry in no_proxy.split(","))


def _matches(entry: str, url: Url) -> bool:
    """Whether an entry of NO_PROXY names a server: `*`, a host, a domain, an address, or a network.

    A port limits the entry to that port. A domain includes its subdomains, with and without a leading dot.
    """
    if entry == "*":
        return True
    entry = entry.rpartition("://")[2]
    host, port = _split_port(entry)
    if port not in {"", str(url.port)} or not host:
        return False
    address = _parse_address(url.host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(host, strict=False)
        except ValueError:
            return False
    domain = host.removeprefix("*").removeprefix(".").rstrip(".")
    name = url.host.rstrip(".")
    return bool(domain) and (name == domain or name.endswith(f".{domain}"))


def _split_port(entry: str) -> tuple[str, str]:
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        return (host + rest, "") if rest.startswith("/") else (host, rest.removeprefix(":"))
    if entry.count(":") == 1:
        host, _, port = entry.partition(":")
        return host, port
    return entry, ""  # without a port, or an IPv6 address without brackets


def _parse_address(host: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
