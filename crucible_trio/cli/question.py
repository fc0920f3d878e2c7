"""What `crucible ask` is asked to do: the prompt, the server, the stream, and options that contradict each other."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, final
from urllib.parse import urlsplit

from crucible_trio.errors import ConfigError, InvalidLastEventIdError
from crucible_trio.records import format_event_id, parse_event_id
from crucible_trio.settings.loading import CLIENT_KEY_VARIABLE

# More than any model reads. It keeps an endless file from filling the memory.
MAX_PROMPT_BYTES: Final = 20 * 1024 * 1024

_VISIBLE_ASCII: Final = re.compile(r"[!-~]{1,255}")

_OPTIONS_OF_A_PIPELINE: Final = ("--engine", "--model", "--base-url", "--replay-speed", "--config")
_OPTIONS_OF_A_REQUEST: Final = ("PROMPT", "--mode", "--max-output-tokens")


def check_options(given: Collection[str]) -> None:
    """Refuse options that contradict each other.

    Args:
        given: The names of the options on the command line, and `PROMPT`.

    Raises:
        ConfigError: Two of them contradict each other, or one needs another.
    """
    if "--stream" in given and "--url" not in given:
        raise ConfigError("--stream needs --url, the server that has the stream")
    if "--key" in given and "--url" not in given:
        raise ConfigError("--key is a server's key, so it needs --url")
    for option in _OPTIONS_OF_A_REQUEST:
        if option in given and "--stream" in given:
            message = f"--stream shows a stream that was started before, so it takes no {option}"
            raise ConfigError(message)
    for option in _OPTIONS_OF_A_PIPELINE:
        if option in given and "--url" in given:
            message = f"--url asks a server, which has its own engine and model, so it takes no {option}"
            raise ConfigError(message)


def read_prompt(argument: str | None) -> str:
    """The prompt: the argument, or standard input if it is `-`, or missing and standard input is not a terminal.

    Raises:
        ConfigError: There is no prompt, it is empty, too large, or not UTF-8.
    """
    if argument is None or argument == "-":
        stdin = sys.stdin
        if stdin is None or (argument is None and stdin.isatty()):
            raise ConfigError("the prompt is missing: give it as an argument, or send it to standard input")
        prompt = _read_text(stdin.buffer)
    else:
        prompt = argument
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise ConfigError("the prompt is not valid UTF-8") from error
    if not prompt.strip():
        raise ConfigError("the prompt is empty")
    return prompt


def _read_text(file: BinaryIO) -> str:
    try:
        content = file.read(MAX_PROMPT_BYTES + 1)
    except OSError as error:
        message = f"standard input cannot be read: {error.strerror}"
        raise ConfigError(message) from error
    if len(content) > MAX_PROMPT_BYTES:
        message = f"the prompt is longer than {MAX_PROMPT_BYTES // 1024**2} MiB"
        raise ConfigError(message)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"the prompt on standard input is not valid UTF-8, at byte {error.start}"
        raise ConfigError(message) from error
    return text.rstrip("\r\n")  # as `$(...)` does in a shell


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server as the user named it.

    Attributes:
        url: Its URL, without the `/v1` of its API.
        key: Its key.
        key_is_option: Whether the key came from `--key`.
    """

    url: str
    key: str | None = None
    key_is_option: bool = False

    def refused_key(self) -> str:
        """The sentence about a missing or wrong key."""
        if self.key is None:
            return f"{self.url} needs a key: set {CLIENT_KEY_VARIABLE}, or use --key"
        source = "--key" if self.key_is_option else CLIENT_KEY_VARIABLE
        return f"{self.url} does not accept the key in {source}"


def parse_url(text: str, *, name: str = "--url") -> str:
    """A server's base URL. `/v1` at its end is removed, because the base URLs of OpenAI's SDKs have it.

    Args:
        text: The URL.
        name: The option or argument, for the message.

    Raises:
        ConfigError: It is not an http(s) URL with a host, or has more than a path behind it.
    """
    try:
        parts = urlsplit(text)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port out of range, a bracket too few
        is_url = False
    # A password would be in messages and in the command that resumes. The message does not quote it either.
    if not is_url or parts.username is not None or parts.query or parts.fragment or not text.isprintable():
        message = f"{name} must look like http://127.0.0.1:8000, without a user or password"
        raise ConfigError(message)
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def check_key(key: str | None) -> str | None:
    """The key, if a header can carry it.

    Raises:
        ConfigError: It cannot. The message does not quote it.
    """
    if key is not None and not _VISIBLE_ASCII.fullmatch(key):
        message = f"the key of --key or {CLIENT_KEY_VARIABLE} must be 1 to 255 visible ASCII characters"
        raise ConfigError(message)
    return key


def parse_stream(text: str) -> tuple[str, int]:
    """The id and the offset in a stream's id (`str_...`, offset 0) or an event id (`str_....43`).

    Raises:
        ConfigError: It is neither.
    """
    try:
        return parse_event_id(text if "." in text else format_event_id(text, 0))
    except InvalidLastEventIdError as error:
        message = (
            "--stream must be a stream's id, such as str_uBEsb66CVQGlaxwPH5stHA, or an event id, such as str_....43"
        )
        raise ConfigError(message) from error


def command_to_resume(server: Server, stream_id: str, last_seq: int, *options: str) -> str:
    """The command that shows the rest of a stream, ready for a shell. It never contains the key."""
    stream = format_event_id(stream_id, last_seq) if last_seq else stream_id
    return shlex.join([_program(), "ask", "--url", server.url, "--stream", stream, *options])


def _program() -> str:
    """How this program was called: by its name if the shell finds it by that, or else by its path."""
    called = sys.argv[0]
    if not os.access(called, os.X_OK) or not Path(called).is_file():
        return "crucible"  # it runs inside another program
    found = shutil.which(Path(called).name)
    return Path(called).name if found is not None and Path(found).samefile(called) else called
