"""`crucible serve` with a wrong setting: one sentence that names the setting and its source, exit code 2."""

from __future__ import annotations

import os
import random
import re
import sys
from pathlib import Path

import pytest
import trio

pytestmark = pytest.mark.slow

# hypercorn does not close a socket that it cannot bind. The process ends anyway.
WARNINGS = ["-W", "error", "-W", "ignore::ResourceWarning"]
CRUCIBLE = [sys.executable, *WARNINGS, "-c", "from crucible_trio.cli import main; main()"]
OPTIONS = {  # options that are settings, with wrong values
    "bind": [
        "",
        "127.0.0.1:99999",
        "127.0.0.1:x",
        "a b:80",
        "nowhere.invalid:80",
        "unix:/no/such/folder/x",
        "0.0.0.0:0",
    ],
    "engine": ["", "magic", "upstream"],
    "model": ["", "/no/such/model.gguf", os.devnull, str(Path(__file__).parent), __file__, "x" * 300],
    "base-url": [
        "",
        "x",
        "http://",
        "ftp://a/v1",
        "http://user:s3cret@a/v1",
        "http://127.0.0.1:1/v1",
        "http://[::1/v1",
    ],
    "replay-speed": ["", "fast", "0", "-1", "nan"],
    "log": [""],
    "workers": ["", "0", "-1", "many", "2"],
    "config": ["", "/", "/no/such/file.toml", __file__],
}
SETTING = {"base-url": "upstream_base_url", "replay-speed": "replay_speed", "log": "log_url"}
NUMBERS = ["buffer_tokens", "max_streams", "drain_seconds", "heartbeat_seconds", "local_slots", "write_timeout_seconds"]


async def refusal(*arguments: str, **variables: str) -> str:
    """The one line that the command prints. It exits with 2. Only log lines of the engine may precede the line."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRUCIBLE_")}
    with trio.fail_after(60):
        done = await trio.run_process(
            [*CRUCIBLE, "serve", *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=kept | variables,
        )
    assert done.returncode == 2, done
    assert done.stdout == b""
    *log, line = done.stderr.decode().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d .* (INFO|WARNING) (engine|upstream|model) ", entry) for entry in log), log
    assert line.startswith("Error: ")
    assert "s3cret" not in line
    return line


def option_cases() -> list[tuple[str, str]]:
    return [(option, value) for option, values in OPTIONS.items() for value in values]


@pytest.mark.parametrize(("option", "value"), option_cases())
async def test_a_wrong_option_gives_one_sentence(option: str, value: str) -> None:
    others = [] if option in {"engine", "model", "base-url"} else ["--engine", "replay"]
    line = await refusal(*others, f"--{option}", value)
    assert SETTING.get(option, "settings file" if option == "config" else option) in line
    assert f"option --{option})" in line


def random_cases() -> list[tuple[str, str, str]]:
    chance = random.Random(10)
    sources = ["variable", "file"]
    return [
        (source, name, chance.choice(["", "many", "-1", "nan", "1,5", "[]"])) for name in NUMBERS for source in sources
    ]


@pytest.mark.parametrize(("source", "name", "value"), random_cases())
async def test_a_wrong_number_gives_one_sentence(source: str, name: str, value: str, tmp_path: Path) -> None:
    variable = f"CRUCIBLE_{name.upper()}"
    if source == "variable":
        line = await refusal("--engine", "replay", **{variable: value})
        assert line.endswith(f"(variable {variable})")
    else:
        file = tmp_path / "settings.toml"
        file.write_text(f"{name} = {value!r}\n")
        line = await refusal("--engine", "replay", "--config", str(file))
        assert line.endswith(f"(file {file})")
    assert name in line


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"CRUCIBLE_BIND": ""}, "bind must name at least one address, such as 127.0.0.1:8000 (variable CRUCIBLE_BIND)"),
        (
            {"CRUCIBLE_ENGINE": "upstream", "CRUCIBLE_UPSTREAM_BASE_URL": "http://a/v1", "CRUCIBLE_UPSTREAM_KEY": "é"},
            "the upstream's key is empty or holds a character that an HTTP header cannot carry "
            "(upstream_key, variable CRUCIBLE_UPSTREAM_KEY)",
        ),
        (
            {"CRUCIBLE_OPENAI_MODELS": '{"o3": "nothing"}'},
            "openai_models.o3 must be a model of the engine: there is no model 'nothing'; there is recorded "
            "(variable CRUCIBLE_OPENAI_MODELS)",
        ),
        ({"CRUCIBLE_CONFIG": ""}, "the name of the settings file is missing (variable CRUCIBLE_CONFIG)"),
    ],
)
async def test_an_error_found_late_names_the_variable(variables: dict[str, str], sentence: str) -> None:
    variables = {"CRUCIBLE_ENGINE": "replay", "CRUCIBLE_BIND": "127.0.0.1:0"} | variables
    assert await refusal(**variables) == f"Error: {sentence}"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"ALL_PROXY": "socks://user:s3cret@127.0.0.1:9"}, "ALL_PROXY names a proxy that is not an HTTP proxy"),
        ({"HTTPS_PROXY": "http://"}, "HTTPS_PROXY is not the URL of a proxy"),
        ({"SSL_CERT_FILE": "/no/such/file.pem"}, "SSL_CERT_FILE names /no/such/file.pem, which cannot be read"),
        ({"SSL_CERT_DIR": "/no/such/folder"}, "SSL_CERT_DIR names /no/such/folder, which is not a folder"),
    ],
)
async def test_a_wrong_proxy_or_certificate_names_the_variable(variables: dict[str, str], sentence: str) -> None:
    line = await refusal("--base-url", "https://model.test/v1", "--model", "m", **variables)
    assert line.startswith(f"Error: {sentence}")


async def test_a_wrong_proxy_does_not_matter_on_loopback() -> None:
    line = await refusal(
        "--base-url", "http://127.0.0.1:1/v1", ALL_PROXY="socks://127.0.0.1:9", NO_PROXY="[::1],fd00::/8"
    )
    assert "start the server" in line


async def test_a_busy_port_names_another_one() -> None:
    with trio.socket.socket() as taken:
        await taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        line = await refusal("--engine", "replay", "--bind", address)
    assert line == (
        f"Error: cannot listen on {address}: Address already in use, choose another port with --bind 127.0.0.1:8001 or "
        "make serve PORT=8001 (option --bind)"
    )
