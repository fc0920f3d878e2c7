"""Names and addresses of hosts."""

from __future__ import annotations

import pytest

from crucible_trio.settings.hosts import host_name, is_loopback


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1:8000", "127.0.0.1"),
        ("[::1]:8000", "::1"),
        ("Chat.Example.org", "chat.example.org"),
        ("[::1", ""),
        ("", ""),
    ],
)
def test_a_host_has_a_name(host: str, name: str) -> None:
    assert host_name(host) == name


@pytest.mark.parametrize("name", ["localhost", "a.localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_some_names_always_mean_this_machine(name: str) -> None:
    assert is_loopback(name)


@pytest.mark.parametrize("name", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", ""])
def test_other_names_may_mean_another_machine(name: str) -> None:
    assert not is_loopback(name)
