"""The settings of a pipeline. Units are in the names.

A cap refuses, and never drops anything. Every number that an attacker could use has a cap, and its docstring says why.
The settings of the engines, the APIs and the server are in `crucible_trio.settings`, which loads all of them from
options, environment and file.
"""

from __future__ import annotations

from typing import Annotated, final

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
Text = Annotated[str, msgspec.Meta(min_length=1)]
Secret = Annotated[str, msgspec.Meta(min_length=1, extra={"secret": True})]
"""Text that no message quotes."""


@final
class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits and defaults of a pipeline."""

    # One stream.
    buffer_tokens: Count = 64
    """Capacity, in pieces, of the buffer between an engine and its log. An engine runs at most 2 x this + 1 pieces
    ahead of its furthest reader. This hides a task switch, and little is thrown away when the reader leaves."""
    stream_log_bytes: Annotated[int, msgspec.Meta(ge=8192)] = 16 * 1024 * 1024
    """Size limit of one log. A stream that reaches it ends as `incomplete` with `log_limit`."""
    max_readers_per_stream: Count = 32
    """Readers attached to one stream at the same time. Each reader is an open connection."""
    max_output_tokens: Count = 32_768
    """The largest limit that a request may ask for, and the limit of a request without one. The server compares it with
    the number of tokens that the engine reports."""
    grace_seconds: Seconds = 120.0
    """How long a stream without readers waits for one."""
    max_grace_seconds: Seconds = 3600.0
    """The largest `grace_seconds` that a request may ask for."""
    first_token_seconds: Seconds = 300.0
    """From the call of the engine to its first output. A large model may have to load first."""
    idle_seconds: Seconds = 120.0
    """Between two pieces of output."""
    total_seconds: Seconds = 3600.0
    """From acceptance to the end, including all waiting."""
    max_deadline_seconds: Seconds = 6 * 3600.0
    """The largest value that a request may ask for, for each of the three deadlines."""

    # All streams.
    log_url: Secret | None = None
    """URL of the Redis that holds the logs, such as `redis://127.0.0.1:6379/0`, so that every process serves every
    stream. Default: this process keeps them in its memory. The URL may hold a password, so no message quotes it."""
    log_lease_seconds: Annotated[float, msgspec.Meta(ge=0.5)] = 5.0
    """With `log_url`: a process that Redis has not heard of for this long counts as dead. Then a process that has
    readers of its streams ends them as `failed` with `producer_lost`."""
    log_outage_seconds: Seconds = 30.0
    """With `log_url`: how long running streams wait for a Redis that does not answer or is full. Then they fail."""
    log_slack_tokens: Annotated[int, msgspec.Meta(ge=0)] = 64
    """With `log_url`: how many more pieces an engine may be ahead of a reader that another process serves. Such a
    reader's position is reported now and then. Without slack the model waits for each report."""
    max_streams: Count = 1000
    """Running streams of all owners. A start beyond the limit gets 503."""
    max_streams_per_owner: Count = 100
    """Running streams of one owner, if keys are configured. A start beyond the limit gets 429."""
    total_log_bytes: Annotated[int, msgspec.Meta(ge=8192)] = 512 * 1024 * 1024
    """Size limit of all logs together, including the requests kept with them, as large as they are in memory. While an
    upstream server has not answered, its request exists once more as JSON, which is not counted. At the limit the
    server evicts finished streams without readers, oldest first. If that is not enough, new streams get 503."""
    retention_seconds: Seconds = 600.0
    """How long a finished stream can be read. Afterwards it is 410 for an hour, then 404."""
    drain_seconds: Seconds = 30.0
    """How long running streams may continue at shutdown."""
    flush_seconds: Seconds = 5.0
    """How long clients may take to read the rest at shutdown."""
