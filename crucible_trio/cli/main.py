"""`crucible serve | ask | check | model`: options, help texts, and errors in one sentence.

Modules that are slow to import are imported inside the command that needs them, so that `--help` answers immediately.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Final, TypeVar, final

import click
from click.core import ParameterSource

from crucible_trio.cli.exit_codes import CANNOT_START, STOPPED
from crucible_trio.cli.running import Result, log_to_stderr, run
from crucible_trio.errors import ConfigError
from crucible_trio.records import Mode
from crucible_trio.settings.loading import CLIENT_KEY_VARIABLE, ServiceSettings, load_settings

Command = TypeVar("Command", bound=Callable[..., object])


# The options that are settings. `load_settings` checks their values, so that all errors read alike.
_OPTION_NAMES: Final = {"upstream_base_url": "--base-url", "log_url": "--log"} | {
    name: f"--{name.replace('_', '-')}" for name in ("engine", "model", "replay_speed", "bind", "workers", "allow_open")
}


class _CannotStart(click.ClickException):
    """Something is missing or misconfigured. Printed as one sentence without a traceback."""

    exit_code = CANNOT_START


@final
class _Group(click.Group):
    """A group that lists its commands with their whole first sentences. Click would cut them off."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands."""
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(limit=1000)) for name, command in sorted(self.commands.items())]
            )


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="crucible_trio")
def main() -> None:
    """Stream a reasoning model's output over Server-Sent Events: resumable, with backpressure."""


def _engine_options(command: Command) -> Command:
    options = [
        click.option(
            "--engine",
            metavar="local|upstream|replay",
            help="The source of the output: a small model in this process, an OpenAI-compatible server, or a "
            "recording. [default: local, or upstream with --base-url]",
        ),
        click.option(
            "--model",
            help="local: the path of a GGUF file [default: SmolLM2-135M, downloaded once]. upstream: the name of the "
            "model on that server [default: the first one it lists].",
        ),
        click.option(
            "--base-url", "upstream_base_url", help="URL of the upstream server, such as http://127.0.0.1:8080/v1."
        ),
        click.option(
            "--replay-speed",
            metavar="FACTOR",
            help="Speed of the replay relative to the recording. inf does not wait.",
        ),
        click.option(
            "--config",
            "config_file",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="A TOML file with settings. Options override CRUCIBLE_... variables, which override the file.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@_engine_options
@click.option("--bind", multiple=True, metavar="HOST:PORT", help="Address to listen on. [default: 127.0.0.1:8000]")
@click.option(
    "--log",
    "log_url",
    metavar="URL",
    help="Redis that holds the streams. Without it they are in the memory of one process. If the URL has a password, "
    "use CRUCIBLE_LOG_URL: other users of this machine can read a command line.",
)
@click.option("--workers", metavar="N", help="Processes that serve the address together. They need --log. [default: 1]")
@click.option(
    "--allow-open", is_flag=True, default=None, help="Let other machines connect although no keys are configured."
)
def serve(bind: tuple[str, ...], **options: object) -> None:
    """Serve the API until SIGINT or SIGTERM.

    After the first signal, running streams and their readers may finish for CRUCIBLE_DRAIN_SECONDS. A second signal
    stops the server immediately. CRUCIBLE_UPSTREAM_KEY is the key of the upstream server. CRUCIBLE_KEYS holds the keys
    of the clients, as owner:key,owner:key.
    """
    settings = _settings(bind=bind or None, **options)
    log_to_stderr(logging.INFO)
    if settings.server.workers > 1:
        from crucible_trio.cli.workers import serve_with_workers

        sys.exit(_run(partial(serve_with_workers, settings)))
    from crucible_trio.cli.serve import serve as serve_here
    from crucible_trio.server.collector import collect_rarely

    collect_rarely()
    sys.exit(_run(partial(serve_here, settings)))


@main.command()
@click.argument("prompt", required=False)
@click.option(
    "--mode", type=click.Choice(["standard", "deep"]), default="standard", help="deep reasons before it answers."
)
@click.option("--url", help="Ask this server. [default: run the pipeline in this process]")
@click.option("--key", envvar=CLIENT_KEY_VARIABLE, help="The server's key. [env: CRUCIBLE_KEY]")
@click.option(
    "--stream", metavar="ID", help="Show this stream of the server instead. An event id resumes after its record."
)
@click.option("--trace/--no-trace", default=True, help="Show or hide the reasoning trace.")
@click.option("--markdown/--no-markdown", default=True, help="Render Markdown in a terminal, or show it as it is.")
@click.option("--max-output-tokens", type=click.IntRange(min=1), help="Limit for reasoning and answer together.")
@_engine_options
@click.pass_context
def ask(
    context: click.Context,
    /,
    prompt: str | None,
    mode: Mode,
    url: str | None,
    key: str | None,
    stream: str | None,
    trace: bool,
    markdown: bool,
    max_output_tokens: int | None,
    **options: object,
) -> None:
    """Ask PROMPT and show the reasoning trace and the answer as they arrive.

    Without PROMPT, or if it is -, the prompt is read from standard input.

    Trace and answer go to standard output, notes to standard error. With --url, a cut connection is resumed. If it
    stays lost, the last note is the command that shows the rest. Ctrl-C stops the stream, also on the server, and a
    second Ctrl-C exits immediately. The exit code is 0 if there is an answer, 1 if the stream failed or was lost, 2 if
    it could not start, and 130 if it was stopped.
    """
    from crucible_trio.cli import ask as asking
    from crucible_trio.cli.question import Server, check_key, check_options, parse_stream, parse_url, read_prompt
    from crucible_trio.cli.rendering import open_display
    from crucible_trio.request import Request, Trace

    log_to_stderr(logging.ERROR)
    given = _given_options(context)
    view: Trace = "segments" if trace else "none"
    again = [*([] if trace else ["--no-trace"]), *([] if markdown else ["--no-markdown"])]
    run: Callable[[], Awaitable[int]]
    with _one_sentence(), _interrupted_is_stopped():
        check_options(given)
        display = open_display(markdown=markdown)
        server = None if url is None else Server(url=parse_url(url), key=check_key(key), key_is_option="--key" in given)
        if server is not None and stream is not None:
            stream_id, after = parse_stream(stream)
            run = partial(asking.show_stream, server, stream_id, after, view, display, *again)
        else:
            request = Request(read_prompt(prompt), mode=mode, max_output_tokens=max_output_tokens, trace=view)
            if server is None:
                run = partial(asking.ask_here, request, _settings(**options), display)
            else:
                run = partial(asking.ask_server, request, server, display, *again)
        sys.exit(_run(run))


def _finite(_context: click.Context, _parameter: click.Parameter, value: float) -> float:
    if not isfinite(value):
        message = "must be a finite number"
        raise click.BadParameter(message)
    return value


@main.command()
@click.argument("urls", metavar="URL...", nargs=-1, required=True)
@click.option(
    "--wire",
    "wire_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="`messages` for the Messages API, `ui` for the UI message stream, or a TOML file that describes the API of "
    "another server.",
)
@click.option(
    "--client",
    "clients",
    multiple=True,
    type=click.Choice(["eventsource", "httpx-sse", "fetch"]),
    help="[default: all]",
)
@click.option("--phase", "phases", multiple=True, type=click.Choice(["log", "live"]), help="[default: both]")
@click.option(
    "--cut", "cuts", multiple=True, type=click.IntRange(min=0), help="Cut only after this byte. May be repeated."
)
@click.option(
    "--log-cuts", type=click.IntRange(min=1), help="Number of cuts per client in the log phase. [default: every byte]"
)
@click.option(
    "--live-cuts", type=click.IntRange(min=1), help="Number of cuts per client in the live phase. [default: 40]"
)
@click.option("--take-turns", is_flag=True, help="Cut each byte with only one client. The clients take turns.")
@click.option("--seed", type=int, default=0, help="Seed for the choice of bytes, if not every byte is cut.")
@click.option("--at-once", type=click.IntRange(min=1), default=8, help="Number of cuts that run at the same time.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    callback=_finite,
    default=60.0,
    help="Seconds without an event after which a response counts as stuck.",
)
@click.option("--key", envvar=CLIENT_KEY_VARIABLE, help="The server's key. [env: CRUCIBLE_KEY]")
def check(urls: tuple[str, ...], wire_file: Path | None, key: str | None, **options: object) -> None:
    """Cut the event streams of the server at URL, resume them, and find lost or repeated events.

    Several URLs are several addresses of one service. Each reconnect goes to the next one.

    In the log phase, one finished stream is cut at every byte and resumed. In the live phase, new streams are cut while
    the engine writes them. Each cut is made with three clients: a browser's EventSource, httpx-sse and
    fetch-event-source. The exit code is 0 if no event is lost or repeated, 1 if one is, and 2 if the check could not
    run.
    """
    from crucible_trio.cli.check import check_server
    from crucible_trio.cli.question import check_key, parse_url
    from crucible_trio.testing.resume import CLIENTS, WIRES, WireFormat, command_again, find_wire
    from crucible_trio.testing.resume import check as run_check

    log_to_stderr(logging.ERROR)
    with _one_sentence():
        wire = find_wire(wire_file) if wire_file is not None else WireFormat()
        if wire_file is None or str(wire_file) in WIRES:
            urls = tuple(parse_url(url, name="URL") for url in urls)
        if key is not None:
            wire = wire.with_headers({"Authorization": f"Bearer {check_key(key)}"})
    options |= {
        "clients": options["clients"] or tuple(CLIENTS),
        "phases": options["phases"] or ("log", "live"),
        "cuts": options["cuts"] or None,
        "again": command_again(urls, wire_file),
    }
    checking = partial(run_check, urls, wire, **options)  # type: ignore[arg-type]  # click checks them
    sys.exit(_run(partial(check_server, checking)))


@main.group(cls=_Group)
def model() -> None:
    """The default model of the local engine."""


@model.command()
def pull() -> None:
    """Download and verify the model's weights, and print their path.

    Weights that are already there are only verified.
    """
    from crucible_trio.cli.progress import fetch_weights

    log_to_stderr(logging.WARNING)
    click.echo(_run(fetch_weights))


@model.command()
def path() -> None:
    """Print the path of the model's weights, downloaded or not."""
    from crucible_trio.engines.local.weights import SMOLLM2, default_cache_folder

    click.echo(default_cache_folder() / SMOLLM2.file)


# The options that only some engines have.
_ENGINES_WITH: Final = {
    "model": ("local", "upstream"),
    "upstream_base_url": ("upstream",),
    "replay_speed": ("replay",),
}


def _check_engine_options(options: Mapping[str, object]) -> None:
    engine = options.get("engine")
    for name, engines in _ENGINES_WITH.items():
        if options.get(name) is not None and engine in {"local", "upstream", "replay"} - set(engines):
            message = f"{_OPTION_NAMES[name]} is for --engine {' or '.join(engines)}, and not for {engine}"
            raise ConfigError(message)


def _settings(**options: object) -> ServiceSettings:
    if options.get("upstream_base_url") is not None and options.get("engine") is None:
        options["engine"] = "upstream"
    with _one_sentence():
        _check_engine_options(options)
        return load_settings(os.environ, option_names=_OPTION_NAMES, **options)  # type: ignore[arg-type]  # a Path


def _given_options(context: click.Context) -> set[str]:
    """The options on the command line, by their long names, and the arguments, as the usage line shows them."""
    return {
        parameter.opts[-1] if isinstance(parameter, click.Option) else parameter.human_readable_name
        for parameter in context.command.params
        if parameter.name and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    }


@contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise _CannotStart(str(error)) from error


@contextmanager
def _interrupted_is_stopped() -> Iterator[None]:
    """Ctrl-C before the command has its own handler, such as while it reads standard input."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(STOPPED)


def _run(command: Callable[[], Awaitable[Result]]) -> Result:
    """Run a command, and turn a `ConfigError` from any of its tasks into one sentence."""
    try:
        return run(command)
    except ConfigError as error:
        sentence = str(error)
    raise _CannotStart(sentence)
