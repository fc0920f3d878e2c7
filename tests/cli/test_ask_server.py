"""`crucible ask --url`: cuts, lost streams, and the command that shows the rest."""

from __future__ import annotations

import os
import pty
import re
import shlex
import signal
import subprocess
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from crucible_trio.records import (
    AnyRecord,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    StreamCancelled,
    StreamCompleted,
    StreamCreated,
    Timings,
    Usage,
)

from .conftest import STREAM, Connection, install_command
from .screen import Screen

pytestmark = pytest.mark.slow

END = (Usage(), Timings(None, 1.0))
RECORDS: list[AnyRecord] = [
    StreamCreated(1, STREAM, "standard", "m", 0.0),
    ReasoningDelta(2, 0, "I think"),
    ReasoningDelta(3, 0, " so.\n"),
    ReasoningDone(4, 1),
    OutputDelta(5, "One *two* "),
    OutputDelta(6, "three.\n\n```py\na = 1\n"),
    OutputDelta(7, "b *= a*2\n```\n"),
    OutputDelta(8, "Last"),
    StreamCompleted(9, "stop", *END),
]
WHOLE = b"Reasoning\nI think so.\n\n\nAnswer\nOne *two* three.\n\n```py\na = 1\nb *= a*2\n```\nLast\n"


async def run(
    command: Sequence[str] | str, environment: dict[str, str], *, stdin: bytes = b"", expect: int = 0
) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(60):
        done = await trio.run_process(
            command,
            shell=isinstance(command, str),
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment,
        )
    assert done.returncode == expect, done
    assert b"Traceback" not in done.stderr
    return done


def printed_command(stderr: bytes) -> str:
    """The command as a user copies it: the last line."""
    return stderr.decode().splitlines()[-1].strip()


@pytest.mark.parametrize("got", [1, 3, 4, 6, 8])
async def test_the_printed_command_shows_exactly_the_rest(planned, environment, got: int) -> None:
    server = await planned(RECORDS, Connection(got), Connection(status=503))
    first = await run(["crucible", "ask", "x", "--url", server.url], environment, expect=1)
    assert b"lost the stream: " in first.stderr
    command = printed_command(first.stderr)
    assert command == f"crucible ask --url {server.url} --stream {STREAM}.{got}"
    second = await run(command, environment)
    assert first.stdout + second.stdout == WHOLE
    assert second.stderr == b""


async def test_the_rest_of_the_rest_can_be_lost_too(planned, environment) -> None:
    server = await planned(
        RECORDS, Connection(3), Connection(status=503), Connection(), Connection(6), Connection(status=503)
    )
    first = await run(["crucible", "ask", "x", "--url", server.url], environment, expect=1)
    second = await run(printed_command(first.stderr), environment, expect=1)
    third = await run(printed_command(second.stderr), environment)
    assert first.stdout + second.stdout + third.stdout == WHOLE
    assert printed_command(second.stderr).endswith(f"{STREAM}.6")


async def test_the_command_has_the_options_of_the_display_and_the_path_of_the_program(
    planned, environment, tmp_path: Path
) -> None:
    program = str(install_command(tmp_path / "it's mine"))
    server = await planned(RECORDS, Connection(3), Connection(status=503))
    command = [program, "ask", "x", "--url", f"{server.url}/a;b/v1/", "--no-trace", "--no-markdown"]
    first = await run(command, environment, expect=1)
    again = printed_command(first.stderr)
    assert shlex.split(again) == [
        *(program, "ask", "--url", f"{server.url}/a;b", "--stream", f"{STREAM}.3"),
        *("--no-trace", "--no-markdown"),
    ]
    await run(again, environment)


@pytest.mark.parametrize("as_option", [True, False])
async def test_the_key_is_never_printed(planned, environment, as_option: bool) -> None:
    server = await planned(RECORDS, Connection(5), Connection(status=503))
    with_key = environment | {"CRUCIBLE_KEY": "s3cret"}
    options = ["--key", "s3cret"] if as_option else []
    first = await run(
        ["crucible", "ask", "x", "--url", server.url, *options], environment if as_option else with_key, expect=1
    )
    assert b"s3cret" not in first.stderr + first.stdout
    assert b"run this with the key in CRUCIBLE_KEY:" in first.stderr
    second = await run(printed_command(first.stderr), with_key)
    assert first.stdout + second.stdout == WHOLE
    assert all("Bearer s3cret" in head for head in server.heads)


@pytest.mark.parametrize(("status", "message"), [(404, b"no such stream"), (410, b"the stream has expired")])
async def test_a_stream_that_the_server_has_no_more_cannot_be_resumed(planned, environment, status, message) -> None:
    server = await planned(RECORDS, Connection(5), Connection(status=status))
    done = await run(["crucible", "ask", "x", "--url", server.url], environment, expect=1)
    assert done.stderr == b"lost the stream: " + message + b"\n"


async def test_a_reconnect_names_the_last_record_that_arrived(planned, environment) -> None:
    server = await planned(RECORDS, Connection(5), Connection(2))
    done = await run(["crucible", "ask", "x", "--url", server.url], environment)
    assert server.last_ids == [None, f"{STREAM}.5", f"{STREAM}.7"]
    assert done.stderr == b"reconnected at record 5\nreconnected at record 7\n"
    assert done.stdout == WHOLE


async def test_stream_shows_a_stream_from_its_beginning_or_after_a_record(planned, environment) -> None:
    server = await planned(RECORDS)
    for offset, text in (("", WHOLE), (".0", WHOLE), (".7", b"Last\n"), (".8", b"\n"), (".9", b"")):
        done = await run(["crucible", "ask", "--stream", STREAM + offset, "--url", server.url], environment)
        assert done.stdout == text
        assert server.last_ids[-2:] == [f"{STREAM}{offset or '.0'}", f"{STREAM}.0"]  # the server checks the offset
    assert server.inputs == []


@pytest.mark.parametrize(
    ("what", "status", "key", "sentence"),
    [
        ("x", 400, None, "400 some_code: some message"),
        ("x", 401, None, "{url} needs a key: set CRUCIBLE_KEY, or use --key"),
        ("x", 401, "--key", "{url} does not accept the key in --key"),
        ("x", 401, "CRUCIBLE_KEY", "{url} does not accept the key in CRUCIBLE_KEY"),
        ("x", 413, None, "413 some_code: some message"),
        ("x", 503, None, "503 some_code: some message"),
        ("--stream", 400, None, "400 some_code: some message"),
        ("--stream", 401, None, "{url} needs a key: set CRUCIBLE_KEY, or use --key"),
        ("--stream", 404, None, "{url} has no such stream, or another key than yours started it"),
        ("--stream", 410, None, "the stream has expired"),
    ],
)
async def test_a_server_that_refuses_gives_one_sentence(
    planned, environment, what: str, status: int, key: str | None, sentence: str
) -> None:
    server = await planned(RECORDS, Connection(status=status))
    words = [what, f"{STREAM}.5"] if what == "--stream" else [what]
    if key == "CRUCIBLE_KEY":
        environment |= {key: "k"}
    options = ["--key", "k"] if key == "--key" else []
    done = await run(["crucible", "ask", *words, "--url", server.url, *options], environment, expect=2)
    assert done.stderr.decode() == f"Error: {sentence.format(url=server.url)}\n"
    assert done.stdout == b""


@pytest.mark.parametrize("words", [["-"], []])
async def test_a_pipe_is_read(planned, environment, words: list[str]) -> None:
    server = await planned(RECORDS)
    await run(
        ["crucible", "ask", *words, "--url", f"{server.url}/v1"], environment, stdin="Wörter\nund mehr\n".encode()
    )
    assert server.inputs == ["Wörter\nund mehr"]


@asynccontextmanager
async def running(*command: str, env: dict[str, str]) -> AsyncIterator[trio.Process]:
    async with trio.open_nursery() as nursery:
        start = partial(trio.run_process, command, check=False, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process = await nursery.start(start)
        with trio.fail_after(60):
            yield process
        nursery.cancel_scope.cancel()


async def read_all(stream: trio.abc.ReceiveStream) -> bytes:
    return b"".join([bytes(chunk) async for chunk in stream])


async def test_a_second_ctrl_c_says_how_to_see_the_rest(planned, environment) -> None:
    server = await planned(RECORDS, Connection(5, stays_open=True))
    server.cancel = Connection(silent=True)
    async with running("crucible", "ask", "x", "--url", server.url, env=environment) as process:
        shown = b""
        while b"One *two*" not in shown:
            shown += await process.stdout.receive_some()
        process.send_signal(signal.SIGINT)
        await server.cancelling.wait()
        process.send_signal(signal.SIGINT)
        shown += await read_all(process.stdout)
        stderr = await read_all(process.stderr)
        assert await process.wait() == 130
    assert stderr.startswith(b"The stream may still be running. To see the rest, run this:\n")
    rest = await run(printed_command(stderr), environment)
    assert shown + rest.stdout == WHOLE


async def test_ctrl_c_before_the_server_has_answered_exits(planned, environment) -> None:
    server = await planned(RECORDS, Connection(silent=True))
    async with running("crucible", "ask", "x", "--url", server.url, env=environment) as process:
        await server.asked.wait()
        process.send_signal(signal.SIGINT)
        stderr = await read_all(process.stderr)
        assert await process.wait() == 130
    assert stderr == b""


async def test_a_stream_that_cannot_be_stopped_is_said(planned, environment) -> None:
    server = await planned(RECORDS, Connection(5, stays_open=True))
    server.cancel = Connection(status=404)
    async with running("crucible", "ask", "x", "--url", server.url, env=environment) as process:
        await process.stdout.receive_some()
        process.send_signal(signal.SIGINT)
        note = await process.stderr.receive_some()
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    assert note == b"could not stop the stream: no such stream\n"


async def test_a_stream_that_was_cancelled_gives_130(planned, environment) -> None:
    server = await planned([*RECORDS[:5], StreamCancelled(6, "client", *END)])
    done = await run(["crucible", "ask", "x", "--url", server.url], environment, expect=130)
    assert done.stderr == b"cancelled by client\n"


async def test_a_terminal_shows_rendered_markdown_and_notes_between(planned, environment) -> None:
    server = await planned(RECORDS, Connection(5), Connection(2))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (12, 50))
    received = b""

    def read() -> bytes:
        try:
            return os.read(ours, 65536)
        except OSError:  # the other side is closed
            return b""

    environment |= {"TERM": "xterm", "COLUMNS": "50", "LINES": "12"}
    with trio.fail_after(60):
        process = await trio.lowlevel.open_process(
            ["crucible", "ask", "x", "--url", server.url], env=environment, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        while data := await trio.to_thread.run_sync(read):
            received += data
        assert await process.wait() == 0
    os.close(ours)
    screen = Screen(50, 12)
    screen.feed(received.decode())
    text = screen.text
    words = "Reasoning I think so. Answer One two three. py a = 1 b *= a*2 Last"
    assert re.sub(r"reconnected at record \d\n", "", text).split() == words.split()
    assert "reconnected at record 5\n" in text
    assert "reconnected at record 7\n" in text
