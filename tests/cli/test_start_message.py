"""The last message of a start."""

from __future__ import annotations

from crucible_trio.cli.serve import start_message
from crucible_trio.engine import EngineInfo
from crucible_trio.settings.apis import ApiSettings


def test_it_says_what_to_open_what_answers_and_how_to_stop() -> None:
    info = EngineInfo(name="replay", models=("recorded", "other"), notice="This is a recording.")
    assert start_message(["http://0.0.0.0:8000", "http://[::]:8000"], info, ApiSettings(server_names=("box",))) == (
        "serving on http://0.0.0.0:8000, http://[::]:8000\n"
        "    open   http://127.0.0.1:8000\n"
        "    open   http://[::1]:8000\n"
        "    model  recorded, other (engine replay)\n"
        "           This is a recording.\n"
        "    keys   none, so all clients share one anonymous owner\n"
        "    names  localhost, IP addresses, box. Clients that use another host name get 403: see server_names\n"
        "    stop   Ctrl-C"
    )


def test_with_keys_every_host_name_is_answered() -> None:
    info = EngineInfo(name="upstream", models=("m",))
    assert start_message(["http://127.0.0.1:8000"], info, ApiSettings(keys={"alice": "k"})) == (
        "serving on http://127.0.0.1:8000\n"
        "    open   http://127.0.0.1:8000\n"
        "    model  m (engine upstream)\n"
        "    keys   required\n"
        "    stop   Ctrl-C"
    )
