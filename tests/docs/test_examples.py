"""The documentation matches the code: programs run, commands exist, tables are complete."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import click
import httpx
import msgspec
import pytest

import crucible_trio
from crucible_trio import sse
from crucible_trio.apis.anthropic import requests as messages
from crucible_trio.apis.anthropic.errors import ANTHROPIC_RULES, type_of
from crucible_trio.apis.anthropic.fold import MessageFold
from crucible_trio.apis.kit.errors import (
    ERROR_RULES,
    ModelNotFoundError,
    TooManyReadersError,
    UnknownParameterError,
    UnsupportedParameterError,
)
from crucible_trio.apis.kit.failures import CLIENTS_FAULT
from crucible_trio.apis.kit.fields import Fields
from crucible_trio.apis.kit.replay import open_after
from crucible_trio.apis.kit.sealed import Seals
from crucible_trio.apis.native.routes import StreamSummary
from crucible_trio.apis.openai.chat import messages as chat_messages
from crucible_trio.apis.openai.chat import requests as chat_requests
from crucible_trio.apis.openai.chat.fold import ChatDialect
from crucible_trio.apis.openai.errors import OPENAI_RULES
from crucible_trio.apis.openai.responses import input as responses_input
from crucible_trio.apis.openai.responses import requests as responses_requests
from crucible_trio.apis.openai.responses.objects import EchoedFields
from crucible_trio.apis.openai.responses.replay import open_dialect
from crucible_trio.apis.operations.prometheus import PipelineCollector
from crucible_trio.apis.ui import chunks as ui_chunks
from crucible_trio.apis.ui import requests as ui_requests
from crucible_trio.cli import main as crucible
from crucible_trio.config import Settings
from crucible_trio.engine import as_engine
from crucible_trio.log.memory import MemoryLog
from crucible_trio.pipeline import Pipeline
from crucible_trio.records import (
    CONTROL,
    IncompleteReason,
    OutputDelta,
    ReasoningDelta,
    ReasoningDone,
    StreamCompleted,
    StreamCreated,
    Timings,
    Usage,
    decode_event,
    encode_control,
    encode_frame,
)
from crucible_trio.request import Request
from crucible_trio.settings import ApiSettings, load_settings
from crucible_trio.settings.apis import Effort
from crucible_trio.settings.loading import GROUPS
from crucible_trio.snapshot import Snapshot
from crucible_trio.web import create_app

ROOT = Path(__file__).parents[2]
PAGES = [
    page
    for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("**/*.md")))
    if not {"_build", "node_modules"} & set(page.parts)
]
ADDRESS = "127.0.0.1:8000"  # in the examples
OPENAIS = "chat.completion.chunk"  # in the examples of that wire
OTHER_PROGRAMS = {".", "cd", "curl", "hypercorn", "mkdir", "node", "none", "npm", "npx"}
OTHER_PROGRAMS |= {"open-webui", "pip", "python", "python3", "sh", "uv"}
# Errors that every API may raise, and the native one never does.
NEVER_NATIVE = {UnsupportedParameterError, UnknownParameterError, ModelNotFoundError, TooManyReadersError}

_FENCE = re.compile(
    r"(?:^<!-- run: (?P<run>\w+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```\n"
    r"(?:\n```text\n(?P<output>.*?)^```\n)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page.

    Attributes:
        run: The word in a `<!-- run: ... -->` comment before the block.
        output: The `text` block right after it, with the expected output.
    """

    name: str
    language: str
    text: str
    run: str | None
    output: str | None


def blocks(language: str, pages: list[Path] = PAGES) -> list[Block]:
    found: list[Block] = []
    for page in pages:
        text = page.read_text("utf-8")
        for match in _FENCE.finditer(text):
            name = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
            found.append(Block(name, match["language"], match["text"], match["run"], match["output"]))
    return [block for block in found if block.language == language]


def programs(run: str | None) -> list[Any]:
    return [pytest.param(block, id=block.name) for block in blocks("python") if block.run == run]


def table(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table after `heading`, without the table's head and without backticks."""
    lines = (ROOT / page).read_text("utf-8").partition(heading)[2].splitlines()
    rows = lines[next(number for number, line in enumerate(lines) if line.startswith("|---")) + 1 :]
    length = next((number for number, line in enumerate(rows) if not line.startswith("|")), len(rows))
    return [[cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows[:length]]


def need_imports(block: Block) -> None:
    """Skip the test of a program whose SDK is not installed."""
    for name in re.findall(r"^import (openai|anthropic)$", block.text, re.MULTILINE):
        pytest.importorskip(name)


@contextmanager
def started(
    command: list[str], announcement: str, stream: str, **variables: str
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a process and wait until it announces its URL. Kill it at the end, or if it does not start in a minute."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRUCIBLE_")} | variables
    with subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        watch = threading.Timer(60, process.kill)
        watch.start()
        try:
            printed = ""
            while not (found := re.search(rf"{announcement} (http://[0-9.:]+)", printed)):
                line = getattr(process, stream).readline()
                assert line, f"the process did not start: {printed}{process.stderr.read() if process.stderr else ''}"
                printed += line
            watch.cancel()  # it has started, and may run for as long as the tests need it
            yield found[1], process
        finally:
            watch.cancel()
            process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a `crucible serve` that plays a recording."""
    command = ["-c", "from crucible_trio.cli import main; main()", "serve", "--engine", "replay"]
    command += ["--replay-speed", "20", "--bind", "127.0.0.1:0"]
    with started(command, " on", "stderr", CRUCIBLE_SERVER_NAMES="chat.example.org") as (url, _):
        yield url


# Programs


@pytest.mark.parametrize("block", programs(None))
def test_a_program_runs_and_prints_what_the_page_says(
    block: Block, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    need_imports(block)
    source = block.text.replace(f"http://{ADDRESS}", server)
    exec(compile(source, block.name, "exec"), {"__name__": "__main__"})
    printed = capsys.readouterr().out
    assert printed
    if block.output is not None:
        assert [line.rstrip() for line in printed.splitlines()] == [line.rstrip() for line in block.output.splitlines()]


@pytest.mark.parametrize("block", programs("server"))
def test_a_server_program_answers_and_shuts_down_cleanly(block: Block) -> None:
    assert ADDRESS in block.text
    source = block.text.replace(ADDRESS, "127.0.0.1:0")
    with started(["-W", "error", "-c", source], "listening on", "stdout") as (url, process):
        prefix = "/llm" if "url_prefix" in source else ""
        headers = {"Accept": "text/event-stream"}
        answer = httpx.post(f"{url}{prefix}/v1/streams", json={"input": "hello"}, headers=headers, timeout=30)
        assert answer.status_code == 200
        assert '"delta":"You said: hello"' in answer.text
        assert "stream.completed" in answer.text
        summary = httpx.post(f"{url}{prefix}/v1/streams", json={"input": "hello"}, timeout=30).json()
        assert "stream.completed" in httpx.get(url + summary["events_url"], timeout=30).text
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.slow
@pytest.mark.parametrize("block", programs("pytest"))
def test_an_example_test_passes_and_can_fail(block: Block, tmp_path: Path) -> None:
    def run(source: str) -> str:
        (tmp_path / "test_example.py").write_text(source)
        command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "test_example.py"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False).stdout

    assert "1 passed" in run(block.text)
    assert "1 failed" in run(block.text.replace("trio.sleep(500)", "trio.sleep(50)"))


@pytest.mark.slow
@pytest.mark.parametrize("block", programs("again"))
def test_a_killed_program_resumes_when_it_runs_again(block: Block, tmp_path: Path) -> None:
    need_imports(block)
    state = tmp_path / "answer.json"

    def text_so_far() -> str:
        return json.loads(state.read_text())["text"] if state.exists() else ""

    command = ["-c", "from crucible_trio.cli import main; main()", "serve", "--engine", "replay"]
    with started([*command, "--replay-speed", "3", "--bind", "127.0.0.1:0"], " on", "stderr") as (url, _):
        program = [sys.executable, "-c", block.text.replace(f"http://{ADDRESS}", url)]
        for length in (10, 100):  # kill it when it has this much of the answer
            with subprocess.Popen(program, cwd=tmp_path) as process:
                watch = threading.Timer(60, process.kill)
                watch.start()
                while len(text_so_far()) < length:
                    assert process.poll() is None
                    time.sleep(0.005)
                process.kill()
                watch.cancel()
            assert json.loads(state.read_text())["status"] is None
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
        [stream] = httpx.get(f"{url}/v1/streams").json()["data"]  # the program started only one stream
        native = httpx.get(f"{url}/v1/streams/{stream['id']}").json()
    assert (native["status"], text_so_far()) == ("completed", native["output"])
    assert done.stdout == f"completed {native['output']}\n"


def test_every_kind_of_program_is_found() -> None:
    assert {block.run for block in blocks("python")} == {None, "server", "pytest", "again"}
    assert any(block.name.startswith("README.md") for block in blocks("python"))


# Commands


def commands() -> Iterator[tuple[str, list[str]]]:
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield block.name, words


def test_every_command_exists_with_its_options() -> None:
    seen = 0
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for name, words in commands():
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        program, *arguments = words or ["none"]
        if program.removeprefix(".venv/bin/") == "crucible":
            command: click.Command = crucible
            while isinstance(command, click.Group):
                assert arguments[0] in command.commands, f"{name}: unknown command {arguments[0]}"
                command = command.commands[arguments.pop(0)]
            command.make_context("crucible", arguments)  # raises for an unknown option
            seen += 1
        elif program == "make":
            assert set(arguments) <= set(targets), name
        else:
            assert program in OTHER_PROGRAMS, f"{name}: {program}"
    assert seen > 5


def all_settings() -> list[str]:
    return [name for group in GROUPS for name in group.__struct_fields__]


def test_every_variable_is_a_setting() -> None:
    others = {"CRUCIBLE_KEY", "CRUCIBLE_CONFIG"}
    names = all_settings()
    for page in PAGES:
        for variable in set(re.findall(r"CRUCIBLE_[A-Z_]*[A-Z]", page.read_text("utf-8"))) - others:
            assert variable.removeprefix("CRUCIBLE_").lower() in names, f"{page}: {variable}"


def defaults() -> dict[str, Any]:
    return {field.name: field.default for group in GROUPS for field in msgspec.structs.fields(group)}


def number_in(text: str) -> float:
    """A number of a page, in the unit of the settings: `1,000`, `16 MiB`, `30 s`, `10 minutes`."""
    number, _, unit = text.partition(" ")
    return float(number.replace(",", "")) * {"": 1, "s": 1, "minutes": 60, "MiB": 1024 * 1024}[unit]


def test_every_default_in_the_text_is_the_codes() -> None:
    found = [
        (page.name, name, number)
        for page in PAGES
        for name, number in re.findall(r"`([a-z_]+)` \(([0-9,]+(?: [A-Za-z]+)?)\)", page.read_text("utf-8"))
        if name in defaults()
    ]
    assert [each for each in found if number_in(each[2]) != defaults()[each[1]]] == []
    assert len(found) > 8


def test_the_table_of_limits_has_the_defaults() -> None:
    documented = {row[0]: row[1] for row in table("docs/howto/operate.md", "## Limits")}
    limits = {
        "running streams": "max_streams",
        "running streams of one owner, with keys": "max_streams_per_owner",
        "bytes of one log": "stream_log_bytes",
        "bytes of all logs": "total_log_bytes",
        "readers of one stream": "max_readers_per_stream",
        "body of a request": "max_request_bytes",
        "bytes of all bodies that are being received or parsed": "total_request_bytes",
        "connections": "max_connections",
        "duration of a write of 16 KiB": "write_timeout_seconds",
    }
    assert {row: number_in(documented[row]) for row in limits} == {row: defaults()[limits[row]] for row in limits}
    assert documented.keys() - limits.keys() == {"time to send a body", "open files"}


def test_every_settings_file_loads(tmp_path: Path) -> None:
    found = blocks("toml")
    for block in found:
        file = tmp_path / "settings.toml"
        file.write_text(block.text)
        environment = dict.fromkeys(re.findall(r'key_variable = "(\w+)"', block.text), "a-key")
        assert load_settings(environment, config_file=file) != load_settings({}), block.name
    assert len(found) >= 2


def tutorial_commands() -> list[str]:
    return [block.text for block in blocks("sh", [ROOT / "docs/tutorial.md"]) if "curl" in block.text]


def test_the_tutorials_stream_is_cut_and_resumed(server: str, need_program: Any) -> None:
    need_program("curl")
    first, second, *_ = tutorial_commands()

    def run(script: str) -> str:
        script = script.replace(f"http://{ADDRESS}", server).replace("curl -N", "curl -sN")
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    cut = run(f"{first.strip()} | head -n 13")  # the retry line and four events
    last_id = re.findall("^id: (.*)$", cut, re.MULTILINE)[-1]
    resumed = run(re.sub(r"ID=\S+", f"ID={last_id}", second))
    whole = run(re.sub(r"ID=\S+", f"ID={last_id}", second).replace('-H "Last-Event-ID: $ID"', ""))

    def events(body: str) -> list[sse.ServerSentEvent]:
        return sse.Decoder().feed(body.encode())

    assert 0 < len(events(cut)) < len(events(whole))
    assert events(cut) + events(resumed) == events(whole)
    assert "stream.completed" in resumed


def test_the_tutorials_slow_reader_gets_its_window_and_the_model_waits(server: str, need_program: Any) -> None:
    need_program("curl")
    start, look = (
        command.replace(f"http://{ADDRESS}", server).replace("curl ", "curl -s ") for command in tutorial_commands()[2:]
    )
    with subprocess.Popen(["bash", "-c", f"exec {start}"], stdout=subprocess.PIPE, text=True) as reader:
        watch = threading.Timer(60, reader.kill)
        watch.start()
        assert reader.stdout is not None
        lines = [reader.stdout.readline() for _ in range(1 + 5 * 3)]
        assert [line[:4] for line in lines] == ["retr", *["data", "id: ", "\n"] * 5]
        stream = re.search(r"str_[^.]*", lines[2])
        assert stream is not None
        script = re.sub(r"ID=\S+", f"ID={stream[0]}", look)
        progress: dict[str, Any] = {}
        while progress.get("activity") != "waiting" and reader.poll() is None:
            snapshot = json.loads(subprocess.run(["bash", "-c", script], capture_output=True, check=True).stdout)
            progress = snapshot["progress"]
        assert progress == {"activity": "waiting", "pieces": 69, "buffered": 65}
        assert snapshot["last_seq"] == 5
        watch.cancel()
        reader.kill()


def test_the_nginx_configuration_streams_and_resumes(server: str, tmp_path: Path) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    [block] = blocks("nginx")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    site = re.sub(r"listen 443 ssl http2", f"listen 127.0.0.1:{port}", block.text)
    site = re.sub(r"\n *ssl_certificate.*", "", site).replace(ADDRESS, server.removeprefix("http://"))
    folders = "".join(
        f"{name}_temp_path {tmp_path}/{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root; " if os.geteuid() == 0 else ""  # other users cannot read the folder of a test
    file = tmp_path / "nginx.conf"
    file.write_text(
        f"{user}daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\n"
        f"events {{}}\nhttp {{ access_log off; gzip on; gzip_types *; {folders}\n{site}}}\n"
    )
    process = subprocess.Popen([nginx, "-c", str(file), "-p", str(tmp_path)], stderr=subprocess.PIPE)
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Host": "chat.example.org", "Origin": "https://chat.example.org", "Accept": "text/event-stream"},
            transport=httpx.HTTPTransport(retries=8),  # until nginx listens
            timeout=30,
        ) as client:
            with client.stream("POST", "/v1/streams", json={"input": "x", "mode": "deep"}) as answer:
                assert answer.status_code == 200
                assert "Content-Encoding" not in answer.headers
                decoder, cut = sse.Decoder(), []
                for chunk in answer.iter_bytes():
                    cut += decoder.feed(chunk)
                    if len(cut) >= 5:
                        break
            stream_id = answer.headers["Crucible-Stream"]
            events = f"/v1/streams/{stream_id}/events"
            resumed = client.get(events, headers={"Last-Event-ID": str(cut[-1].id)})
            whole = client.get(events)
        assert cut + sse.Decoder().feed(resumed.content) == sse.Decoder().feed(whole.content)
        assert b"stream.completed" in resumed.content
    finally:
        process.terminate()
        process.communicate(timeout=30)


# Reference


def test_the_table_of_settings_matches_the_code() -> None:
    spec = importlib.util.spec_from_file_location("docs_conf", ROOT / "docs" / "conf.py")
    assert spec is not None
    assert spec.loader is not None
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    page = (ROOT / "docs/reference/config.md").read_text("utf-8")
    assert page == conf.with_table(page), "run `python docs/conf.py`"
    named = re.findall(r"^\| `([a-z_]+)`<br>`CRUCIBLE_([A-Z_]+)` \|", page, re.MULTILINE)
    assert [name for name, _ in named] == all_settings()
    assert all(variable == name.upper() for name, variable in named)


def test_the_table_of_routes_matches_the_code() -> None:
    async def silent(request: Request) -> Any:
        yield "x"

    app = create_app(Pipeline(as_engine(silent), Settings()))
    parameter = re.compile("<(?:[a-z]+:)?(?:[a-z]+_)?([a-z]+)>")
    routes = {
        method + " " + parameter.sub(r"{\1}", rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }
    documented = {row[0] for row in table("docs/reference/protocol.md", "## Routes")}
    assert documented == routes


def test_the_examples_of_records_are_the_bytes_that_the_code_sends() -> None:
    seen = set()
    for name in ("docs/reference/protocol.md", "docs/tutorial.md"):
        for block in blocks("text", [ROOT / name]):
            if "data: " not in block.text or OPENAIS in block.text:
                continue
            frames = block.text.removeprefix("retry: 1000\n")
            encoded = b""
            for event in sse.Decoder().feed(frames.encode()):
                record = decode_event(event.data or "")
                seen.add(record.__struct_config__.tag)
                if isinstance(record, CONTROL):
                    encoded += encode_control(record)
                else:
                    encoded += encode_frame((event.id or "").rpartition(".")[0], record)
            assert encoded.decode() == frames, block.name
    assert {"stream.created", "output.delta", "stream.completed", "server.draining", "server.busy"} <= seen


def a_small_log() -> list[bytes]:
    """The frames of the log behind the examples of OpenAI's APIs."""
    stream_id, usage, timings = "str_7Q2M4kWcT0aXn3v9LzB1pg", Usage(3, 9, 4), Timings(212.0, 3411.0)
    records = (
        StreamCreated(1, stream_id, "deep", "smollm2-135m", 1764000000.0),
        ReasoningDelta(2, 0, "First, "),
        ReasoningDelta(3, 1, "then."),
        ReasoningDone(4, 2),
        OutputDelta(5, "Hel"),
        OutputDelta(6, "lo"),
        StreamCompleted(7, "stop", usage, timings),
    )
    return [encode_frame(stream_id, record) for record in records]


def test_the_example_of_a_chat_completion_is_the_bytes_that_the_code_sends() -> None:
    [block] = [block for block in blocks("text", [ROOT / "docs/reference/protocol.md"]) if OPENAIS in block.text]
    created, thought, _, _, *_, end = a_small_log()
    answer = encode_frame("str_7Q2M4kWcT0aXn3v9LzB1pg", OutputDelta(5, "Hello"))
    assert ChatDialect(include_usage=True).feed([created, thought, answer, end]).decode() == block.text


async def test_the_events_of_a_response_are_those_that_the_code_sends() -> None:
    [block] = [
        block
        for block in blocks("text", [ROOT / "docs/reference/protocol.md"])
        if block.text.startswith("response.created")
    ]
    view = await open_dialect(MemoryLog(room_without_readers=True), EchoedFields())
    sent = re.findall("^event: (.*)$", view.feed(a_small_log()).decode(), re.MULTILINE)
    assert [line.split()[0] for line in block.text.splitlines()] == sent


async def test_the_events_of_a_message_are_those_that_the_code_sends() -> None:
    [block] = [
        block
        for block in blocks("text", [ROOT / "docs/reference/protocol.md"])
        if block.text.startswith("message_start")
    ]
    view = await open_after(MemoryLog(room_without_readers=True), MessageFold("shown", Seals("secret").of("alice")))
    sent = re.findall("^event: (.*)$", view.feed(a_small_log()).decode(), re.MULTILINE)
    assert [line.split()[0] for line in block.text.splitlines()] == sent


def test_the_table_of_record_types_matches_the_code() -> None:
    documented = {row[0] for row in table("docs/reference/protocol.md", "id: str_7Q2M4kWcT0aXn3v9LzB1pg.14")}
    kinds = set(get_args(crucible_trio.AnyRecord)) - {crucible_trio.UnknownRecord}
    assert documented == {record.__struct_config__.tag for record in kinds}


def test_the_json_of_the_protocol_has_the_fields_of_the_code() -> None:
    found = [json.loads(block.text) for block in blocks("json", [ROOT / "docs/reference/protocol.md"])]
    summary, snapshot = found
    assert list(summary) == list(StreamSummary.__struct_fields__)
    assert list(snapshot) == [*Snapshot.__struct_fields__, "events_url", "cancel_url"]
    asked = {row[0] for row in table("docs/reference/protocol.md", "## Start a stream")}
    assert asked == set(Request.__struct_fields__)


def test_the_table_of_errors_matches_the_code() -> None:
    documented = {row[0]: (int(row[1]), row[2]) for row in table("docs/reference/errors.md", "<!-- table: web.errors")}
    assert documented == {
        kind.__name__: (rule.status, rule.code) for kind, rule in ERROR_RULES.items() if kind not in NEVER_NATIVE
    }


def test_the_table_of_openais_errors_matches_the_code() -> None:
    page = (ROOT / "docs/reference/errors.md").read_text("utf-8")
    documented = {
        row[0]: (int(row[1]), row[2]) for row in table("docs/reference/errors.md", "<!-- table: web.openai.errors")
    }
    rules = {kind: ERROR_RULES[kind] for kind in NEVER_NATIVE} | dict(OPENAI_RULES)
    assert documented == {kind.__name__: (rule.status, rule.code) for kind, rule in rules.items()}
    section = page.partition("## On OpenAI's routes")[2].partition("\n## ")[0]
    for code in CLIENTS_FAULT | {reason for reason in get_args(IncompleteReason) if "deadline" in reason}:
        assert f"`{code}`" in section
    assert {row[0] for row in table("docs/reference/errors.md", "<!-- table: engine codes")} >= CLIENTS_FAULT


def test_the_example_of_anthropics_error_is_the_servers_answer(server: str) -> None:
    *_, example = blocks("json", [ROOT / "docs/reference/errors.md"])
    body = {"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": "Why?"}]}
    answer = httpx.post(f"{server}/v1/messages", json=body)
    assert (answer.status_code, answer.json()) == (404, json.loads(example.text))


def test_the_example_of_openais_error_is_the_servers_answer(server: str) -> None:
    *_, example, _ = blocks("json", [ROOT / "docs/reference/errors.md"])
    body = {"messages": [{"role": "user", "content": "Why?"}], "n": 2}
    answer = httpx.post(f"{server}/v1/chat/completions", json=body)
    assert (answer.status_code, answer.json()) == (400, json.loads(example.text))


def test_the_table_of_anthropics_errors_matches_the_code() -> None:
    documented = {
        row[0]: (int(row[1]), row[2]) for row in table("docs/reference/errors.md", "<!-- table: web.anthropic.errors")
    }
    rules = {kind: ERROR_RULES[kind] for kind in NEVER_NATIVE} | dict(ANTHROPIC_RULES)
    assert documented == {kind.__name__: (rule.status, rule.code) for kind, rule in rules.items()}
    rows = table("docs/reference/errors.md", "| status | `type` |")
    for status, kind in rows:
        for number in re.findall(r"\d{3}", status.removeprefix("other statuses below 500")) or ["400"]:
            assert type_of(int(number)) == kind


@pytest.mark.parametrize(
    ("page", "name", "objects"),
    [
        ("openai", "chat", {"": chat_requests.BODY, "messages[].": chat_messages.MESSAGE}),
        (
            "openai",
            "responses",
            {
                "": responses_requests.BODY,
                "reasoning.": responses_requests.REASONING,
                "text.": responses_requests.TEXT,
                "input[].": responses_input.MESSAGE,
            },
        ),
        (
            "anthropic",
            "messages",
            {"": messages.BODY, "thinking.": messages.THINKING, "output_config.": messages.OUTPUT_CONFIG},
        ),
    ],
)
def test_the_tables_of_fields_match_the_code(page: str, name: str, objects: dict[str, Fields[Any]]) -> None:
    expected: dict[str, tuple[str, str | None]] = {}
    for at, fields in objects.items():
        expected |= {at + field: ("understood", None) for field in fields.shape.__struct_fields__}
        expected |= {at + field: ("ignored", why) for field, why in fields.harmless.items()}
        for field, nothing in fields.refused.items():
            unless = f"unless {', '.join(map(json.dumps, nothing))}" if nothing else ""
            expected[at + field] = ("refused", unless)
    rows = table(f"docs/howto/{page}.md", f"<!-- table: {name} -->")
    assert {row[0]: (row[1], None if row[1] == "understood" else row[2]) for row in rows} == expected
    assert len(rows) == len(expected)


def test_the_tables_of_the_ui_message_stream_match_the_code() -> None:
    fields = [row[0] for row in table("docs/howto/react.md", "<!-- table: ui -->")]
    assert sorted(fields) == sorted(ui_requests.UIRequestBody.__struct_encode_fields__)
    rows = table("docs/reference/protocol.md", "<!-- table: chunks -->")
    records = {name for row in rows for name in row[0].split(", ")}
    kinds = set(get_args(crucible_trio.AnyRecord)) - {crucible_trio.UnknownRecord}
    assert records == {kind.__struct_config__.tag for kind in kinds} - {
        "reasoning.done",
        "stream.continued",
        "upstream.fields",
    }
    kinds = {kind.__struct_config__.tag for kind in ui_chunks.Chunk.__subclasses__()}
    named = {word for row in rows for word in re.split(r"[^a-z-]+", row[1])}
    # Only in replays of a continued message.
    assert kinds - named == {"tool-output-available", "tool-output-error", "tool-output-denied"}


def test_the_table_of_efforts_matches_the_code() -> None:
    deep, standard, *_ = table("docs/howto/openai.md", "## Which mode")
    assert set(re.split(", | or ", deep[0].partition("reasoning.effort) ")[2])) == set(
        ApiSettings().openai_deep_efforts
    )
    others = set(get_args(Effort)) - set(ApiSettings().openai_deep_efforts)
    assert set(standard[0].removesuffix(", or nothing").split(", ")) == others


def test_the_table_of_failures_matches_the_code() -> None:
    raised: dict[str, set[bool]] = {}
    for file in (ROOT / "crucible_trio").glob("**/*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            if node.func.id == "EngineError" and isinstance(node.args[0], ast.Constant):
                retryable = {
                    word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)
                }.get("retryable", False)
                raised.setdefault(str(node.args[0].value), set()).add(bool(retryable))
    documented = {row[0]: row[1] for row in table("docs/reference/errors.md", "<!-- table: engine codes")}
    assert documented == {
        code: "see the record" if len(values) > 1 else "yes" if values == {True} else "no"
        for code, values in raised.items()
    }
    upstream = {row[0]: row[2] for row in table("docs/howto/upstream.md", "## What counts as a failure")}
    assert upstream == {code: answer for code, answer in documented.items() if code.startswith("upstream_")}


def test_the_table_of_metrics_is_the_code() -> None:
    async def silent(request: Request) -> Any:
        yield "x"

    documented = {row[0].partition(" ")[0] for row in table("docs/howto/operate.md", "| metric |")}
    collector = PipelineCollector(Pipeline(as_engine(silent), Settings()))
    assert documented == {family.name for family in collector.collect()}


def test_the_table_of_the_supervisors_metrics_is_the_code() -> None:
    documented = {row[0] for row in table("docs/howto/operate.md", "| metric of the supervisor |")}
    source = (ROOT / "crucible_trio/server/supervisor.py").read_text("utf-8")
    assert documented == set(re.findall(r'"(crucible_worker[a-z_]*?)(?:_total)?"', source))


def test_every_link_between_pages_has_a_target() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_no_page_names_this_machine() -> None:
    for page in [*PAGES, ROOT / "docs" / "conf.py"]:
        assert not re.search(r"/(?:root|tmp|work|home)/|pypi\.org|pythonhosted", page.read_text("utf-8")), page


def test_the_module_map_lists_every_module() -> None:
    page = (ROOT / "docs/modules.md").read_text("utf-8")
    package = ROOT / "crucible_trio"
    modules = {str(file.relative_to(package).with_suffix("")) for file in package.rglob("*.py")}
    modules = {module for module in modules if not module.endswith("__init__")} | {"crucible_trio_pytest"}
    packages = {"engines"}  # listed for what their `__init__` holds
    assert set(re.findall(r"^\| `([a-z0-9_/]*[a-z0-9_])` \|", page, re.MULTILINE)) == modules | packages
