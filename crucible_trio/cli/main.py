"""`crucible serve | ask | check | model`: what each command takes, and what it says when it cannot start.

Everything that takes long to import is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import click
import trio

from crucible_trio.errors import ConfigError
from crucible_trio.settings.loading import CLIENT_KEY_VARIABLE, ServiceSettings, load_settings

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., object])


class _CannotStart(click.ClickException):
    """One sentence and no traceback: something is missing or set wrong."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="crucible_trio")
def main() -> None:
    """Stream a reasoning model's output over Server-Sent Events: resumable, with backpressure."""


def _engine_options(command: Command) -> Command:
    options = [
        click.option(
            "--engine",
            type=click.Choice(["local", "upstream", "replay"]),
            help="Where tokens come from: a small model in this process, an OpenAI-compatible server, or a recording. "
            "[default: local; upstream with --base-url]",
        ),
        click.option(
            "--model",
            help="local: path of a GGUF file [default: SmolLM2-135M, fetched once]. upstream: the model's name there "
            "[default: the first it lists].",
        ),
        click.option("--base-url", "upstream_base_url", help="The upstream, such as http://127.0.0.1:8080/v1."),
        click.option("--replay-speed", type=float, help="How much faster than recorded; inf does not wait at all."),
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path, dir_okay=False),
            help="A TOML file with settings. Options win over CRUCIBLE_... variables, those over the file.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@_engine_options
@click.option("--bind", multiple=True, metavar="HOST:PORT", help="Address to listen on. [default: 127.0.0.1:8000]")
@click.option("--allow-open", is_flag=True, default=None, help="Serve other machines although no keys are configured.")
def serve(bind: tuple[str, ...], **options: object) -> None:
    """Serve the API until SIGINT or SIGTERM.

    The first signal lets running streams finish for a while (CRUCIBLE_DRAIN_SECONDS) with their readers attached; the
    second stops at once. An upstream's key comes from CRUCIBLE_UPSTREAM_KEY, the clients' keys from CRUCIBLE_KEYS
    (owner:key,owner:key).
    """
    from crucible_trio.cli.serve import serve as run

    settings = _settings(bind=bind or None, **options)
    _log_to_stderr(logging.INFO)
    if not _run(partial(run, settings)):
        sys.exit(1)


@main.command()
@click.argument("prompt")
@click.option("--mode", type=click.Choice(["standard", "deep"]), default="standard", help="deep reasons first.")
@click.option("--url", help="Ask this server. [default: run the pipeline in this process]")
@click.option("--key", envvar=CLIENT_KEY_VARIABLE, help="The server's key. [env: CRUCIBLE_KEY]")
@click.option("--trace/--no-trace", default=True, help="Show the reasoning trace, or leave it out.")
@click.option("--max-output-tokens", type=click.IntRange(min=1), help="Reasoning and answer together.")
@_engine_options
def ask(
    prompt: str,
    mode: str,
    url: str | None,
    key: str | None,
    trace: bool,
    max_output_tokens: int | None,
    **options: object,
) -> None:
    """Ask PROMPT and show the reasoning trace and the answer as they come.

    Trace and answer go to standard output, notes to standard error. With --url a cut connection is resumed where it
    was, and Ctrl-C stops the stream on the server; a second Ctrl-C does not wait for it. The exit code is 0 when there
    is an answer, 1 when the stream failed and 130 when it was stopped.
    """
    import msgspec

    from crucible_trio.cli import ask as asking
    from crucible_trio.request import Request

    fields = {
        "input": prompt,
        "mode": mode,
        "max_output_tokens": max_output_tokens,
        "trace": "segments" if trace else "none",
    }
    try:
        request = msgspec.convert(fields, Request)
    except msgspec.ValidationError as error:
        raise click.UsageError(str(error)) from error
    _log_to_stderr(logging.ERROR)
    if url is not None:
        run = partial(asking.ask_server, request, url, key)
    else:
        run = partial(asking.ask_here, request, _settings(**options))
    sys.exit(_run(run))


@main.command()
@click.argument("url")
@click.option(
    "--wire",
    "wire_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A TOML file that says how another server is used.",
)
@click.option(
    "--client",
    "clients",
    multiple=True,
    type=click.Choice(["eventsource", "httpx-sse", "fetch"]),
    help="[default: all]",
)
@click.option("--phase", "phases", multiple=True, type=click.Choice(["log", "live"]), help="[default: both]")
@click.option("--cut", "cuts", multiple=True, type=click.IntRange(min=0), help="Cut after this byte and no other.")
@click.option("--log-cuts", type=click.IntRange(min=1), help="Bytes to cut per client from the log. [default: all]")
@click.option("--live-cuts", type=click.IntRange(min=1), help="Streams to start and cut per client. [default: 40]")
@click.option("--take-turns", is_flag=True, help="Share the bytes out among the clients.")
@click.option("--seed", type=int, default=0, help="Picks the bytes where not all are cut.")
@click.option("--at-once", type=click.IntRange(min=1), default=8, help="Cuts at a time.")
@click.option("--timeout", type=float, default=60.0, help="Seconds without an event that count as stuck.")
@click.option("--key", envvar=CLIENT_KEY_VARIABLE, help="The server's key. [env: CRUCIBLE_KEY]")
def check(url: str, wire_file: Path | None, key: str | None, **options: object) -> None:
    """Cut the event streams of the server at URL, resume them, and look for what is lost or comes twice.

    One stream is cut at every byte and read on from its log, fresh ones are cut while they are made, each by three
    clients: a browser's EventSource, httpx-sse and fetch-event-source. The exit code is 0 when nothing is lost and
    nothing comes twice, 1 when something does, 2 when it could not be checked.
    """
    from crucible_trio.cli.check import check_server, command_again
    from crucible_trio.testing.resume import CLIENTS, WireFormat, load_wire
    from crucible_trio.testing.resume import check as run_check

    _log_to_stderr(logging.ERROR)
    try:
        wire = load_wire(wire_file) if wire_file is not None else WireFormat()
    except ConfigError as error:
        raise _CannotStart(str(error)) from error
    if key is not None:
        wire = wire.with_headers({"Authorization": f"Bearer {key}"})
    options |= {
        "clients": options["clients"] or tuple(CLIENTS),
        "phases": options["phases"] or ("log", "live"),
        "cuts": options["cuts"] or None,
    }
    checking = partial(run_check, url, wire, **options)  # type: ignore[arg-type]  # click sees to them
    sys.exit(_run(partial(check_server, checking, command_again(url, wire_file))))


@main.group()
def model() -> None:
    """The small model that the local engine brings along."""


@model.command()
def pull() -> None:
    """Fetch the model's weights, unless they are there, check them, and print where they are."""
    from crucible_trio.cli.progress import fetch_weights

    _log_to_stderr(logging.WARNING)
    click.echo(_run(fetch_weights))


@model.command()
def path() -> None:
    """Print where the model's weights are, or would be fetched to."""
    from crucible_trio.engines.local.weights import SMOLLM2, default_cache_folder

    click.echo(default_cache_folder() / SMOLLM2.file)


def _settings(**options: object) -> ServiceSettings:
    if options.get("upstream_base_url") is not None and options.get("engine") is None:
        options["engine"] = "upstream"
    try:
        return load_settings(os.environ, **options)  # type: ignore[arg-type]  # config_file is a Path, click sees to it
    except ConfigError as error:
        raise _CannotStart(str(error)) from error


def _run(command: Callable[[], Awaitable[Result]]) -> Result:
    try:
        return trio.run(command)
    except* ConfigError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise _CannotStart(str(error)) from None


def _log_to_stderr(level: int) -> None:
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request with its URL
