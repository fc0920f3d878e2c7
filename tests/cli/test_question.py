"""What `crucible ask` accepts: prompts, URLs, ids, and options that fit together. Else one sentence and exit code 2."""

from __future__ import annotations

import inspect
import io
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from crucible_trio.cli import ask as asking
from crucible_trio.cli import question
from crucible_trio.cli.main import main
from crucible_trio.cli.question import MAX_PROMPT_BYTES, Server, parse_url, read_prompt
from crucible_trio.errors import ConfigError
from crucible_trio.request import Request

STREAM = "str_uBEsb66CVQGlaxwPH5stHA"
URL = "http://127.0.0.1:8000"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CRUCIBLE_KEY", "CRUCIBLE_CONFIG", "CRUCIBLE_ENGINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[Any, ...]]]:
    """Records the calls of the functions that would ask."""
    calls: list[tuple[str, tuple[Any, ...]]] = []

    def record(name: str) -> Callable[..., Awaitable[int]]:
        async def call(*arguments: Any) -> int:
            calls.append((name, arguments))
            return 0

        return call

    for name in ("ask_here", "ask_server", "show_stream"):
        monkeypatch.setattr(asking, name, record(name))
    return calls


def ask(*arguments: str, stdin: bytes = b"") -> Result:
    # click 8.2 always keeps the two outputs apart and has dropped the option.
    has_option = "mix_stderr" in inspect.signature(CliRunner).parameters
    runner = CliRunner(mix_stderr=False) if has_option else CliRunner()
    return runner.invoke(main, ["ask", *arguments], input=stdin)


def sentence(*arguments: str, stdin: bytes = b"") -> str:
    """The sentence with which the command refuses."""
    result = ask(*arguments, stdin=stdin)
    assert (result.exit_code, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line.removeprefix("Error: ")


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["hello"], b"unread", "hello"),
        (["-"], b"hello", "hello"),
        ([], b"hello", "hello"),
        ([], "\ufeffWörter\n\n zwei\r\n\n".encode(), "Wörter\n\n zwei"),
        (["--", "-x"], b"", "-x"),
    ],
)
def test_the_prompt_is_the_argument_or_standard_input(called, arguments: list[str], stdin: bytes, prompt: str) -> None:
    assert ask(*arguments, stdin=stdin).exit_code == 0
    [(name, (request, *_))] = called
    assert (name, request) == ("ask_here", Request(prompt))


@pytest.mark.parametrize(
    ("arguments", "stdin", "expected"),
    [
        ([""], b"x", "the prompt is empty"),
        ([" \n"], b"x", "the prompt is empty"),
        ([], b"", "the prompt is empty"),
        (["-"], b"\n\n", "the prompt is empty"),
        ([], b"ok \xff", "the prompt on standard input is not valid UTF-8, at byte 3"),
        ([], b"x" * (MAX_PROMPT_BYTES + 1), "the prompt is longer than 20 MiB"),
        (["\udcff"], b"", "the prompt is not valid UTF-8"),
    ],
)
def test_a_prompt_that_cannot_be_asked_gives_one_sentence(arguments: list[str], stdin: bytes, expected: str) -> None:
    assert sentence(*arguments, stdin=stdin) == expected
    assert sentence(*arguments, "--url", URL, stdin=stdin) == expected


def test_a_prompt_of_the_largest_size_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"x" * MAX_PROMPT_BYTES)))
    assert len(read_prompt(None)) == MAX_PROMPT_BYTES


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_a_terminal_is_read_only_if_the_prompt_is_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(io.BytesIO(b"typed\n")))
    with pytest.raises(ConfigError, match=r"^the prompt is missing: give it as an argument, or send it to standard"):
        read_prompt(None)
    assert read_prompt("-") == "typed"


class Folder(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, _: object) -> int:
        raise IsADirectoryError(21, "Is a directory")


def test_a_closed_or_unreadable_standard_input_gives_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match=r"^the prompt is missing"):
        read_prompt("-")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Folder())))
    with pytest.raises(ConfigError, match=r"^standard input cannot be read: Is a directory$"):
        read_prompt(None)


def test_ctrl_c_while_the_prompt_is_typed_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: str | None) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(question, "read_prompt", interrupted)
    result = ask()
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        *(
            (["x", "--url", URL, option, value], f"which has its own engine and model, so it takes no {option}")
            for option, value in [
                ("--engine", "replay"),
                ("--model", "m"),
                ("--base-url", "http://a/v1"),
                ("--replay-speed", "2"),
                ("--config", "f"),
            ]
        ),
        *(
            (["--stream", STREAM, "--url", URL, *words], f"started before, so it takes no {words[0]}")
            for words in (["--mode", "standard"], ["--max-output-tokens", "4"])
        ),
        (["x", "--stream", STREAM, "--url", URL], "started before, so it takes no PROMPT"),
        (["-", "--stream", STREAM, "--url", URL], "started before, so it takes no PROMPT"),
        (["--stream", STREAM], "--stream needs --url"),
        (["x", "--key", "k"], "--key is a server's key, so it needs --url"),
    ],
)
def test_options_that_contradict_each_other_give_one_sentence(called, arguments: list[str], expected: str) -> None:
    assert expected in sentence(*arguments, stdin=b"x")
    assert called == []


def test_variables_of_a_server_and_the_key_variable_contradict_nothing(called, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUCIBLE_ENGINE", "replay")
    monkeypatch.setenv("CRUCIBLE_KEY", "k")
    assert ask("x").exit_code == 0
    assert ask("x", "--url", URL).exit_code == 0
    assert [name for name, _ in called] == ["ask_here", "ask_server"]
    assert called[1][1][1] == Server(url=URL, key="k", key_is_option=False)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (URL, URL),
        (f"{URL}/", URL),
        (f"{URL}/v1", URL),
        (f"{URL}/v1/", URL),
        ("https://h.example/api/v1", "https://h.example/api"),
        ("https://h.example/v1/api", "https://h.example/v1/api"),
        ("https://h.example/sv1", "https://h.example/sv1"),
        ("http://[::1]:80/v1", "http://[::1]:80"),
    ],
)
def test_a_base_url_may_end_in_v1(text: str, url: str) -> None:
    assert parse_url(text) == url


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "x",
            "127.0.0.1:8000",
            "http://",
            "ftp://h",
            "http:///v1",
            "http://h:99999",
            "http://h:x",
        ),
        "http://[::1",
        *(
            "http://u:s3cret@h",
            "http://s3cret@h/v1",
            "http://h/?k=s3cret",
            "http://h/#s3cret",
            "http://h/\n",
            "\x1b[1m",
        ),
    ],
)
def test_another_url_gives_one_sentence_that_does_not_quote_it(text: str) -> None:
    assert sentence("x", "--url", text) == "--url must look like http://127.0.0.1:8000, without a user or password"


def test_an_invalid_key_gives_one_sentence_without_it() -> None:
    for key in ("s3cr\u00e9t", "s3cret\n", ""):
        assert sentence("x", "--url", URL, "--key", key) == (
            "the key of --key or CRUCIBLE_KEY must be 1 to 255 visible ASCII characters"
        )


@pytest.mark.parametrize(("text", "after"), [(STREAM, 0), (f"{STREAM}.43", 43), (f"{STREAM}.0", 0)])
def test_a_stream_is_named_by_its_id_or_an_event_id(called, text: str, after: int) -> None:
    assert ask("--url", URL, "--stream", text, "--no-trace", stdin=b"unread").exit_code == 0
    [(name, (server, stream_id, offset, trace, _, *again))] = called
    assert (name, server.url, stream_id, offset, trace) == ("show_stream", URL, STREAM, after, "none")
    assert again == ["--no-trace"]


@pytest.mark.parametrize(
    "text", ["", "x", "str_x", f"{STREAM}.", f"{STREAM}.-1", f"{STREAM}.01", f"{STREAM}x", "." * 300]
)
def test_another_id_gives_one_sentence(text: str) -> None:
    assert sentence("--url", URL, "--stream", text).startswith("--stream must be a stream's id, such as str_")


def commands(command: click.Command, *path: str) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = [(path, command)]
    for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        found += commands(inner, *path, name)
    return found


COMMANDS = commands(main)


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=[" ".join(("crucible", *path)) for path, _ in COMMANDS])
def test_help_fits_80_columns_and_cuts_nothing_off(path: tuple[str, ...], command: click.Command) -> None:
    result = CliRunner().invoke(main, [*path, "--help"], terminal_width=80, prog_name="crucible")
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= 80
    shown = "".join(result.output.split())
    texts = [command.help or ""]
    texts += [parameter.help or "" for parameter in command.params if isinstance(parameter, click.Option)]
    if isinstance(command, click.Group):
        texts += [inner.help.partition("\n\n")[0] for inner in command.commands.values() if inner.help]
    for text in texts:
        assert "".join(text.split()) in shown
