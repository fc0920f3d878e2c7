"""The wires of this package's other APIs, by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from crucible_trio.testing.resume.wire import PROMPT, WireFormat, load_wire

MESSAGES: Final = WireFormat(
    path="/v1/messages",
    headers={"Content-Type": "application/json", "Idempotency-Key": "{key}"},
    body=json.dumps(
        {
            "max_tokens": 4096,
            "thinking": {"type": "adaptive"},
            "stream": True,
            "messages": [{"role": "user", "content": PROMPT}],
        }
    ),
    events="/v1/messages/{header:request-id}/events",
    events_headers={},
    text=("delta.text", "delta.thinking", "delta.partial_json", "delta.signature"),
    channel=("index", "delta.type"),
    terminal=("message_stop", "error"),
    control=(),
)
"""Anthropic's Messages API. Resumes by `GET` where the client can, and else by sending the start again."""

UI: Final = WireFormat(
    path="/v1/ui/chat",
    headers={"Content-Type": "application/json", "Idempotency-Key": "{key}"},
    body=json.dumps({"messages": [{"role": "user", "parts": [{"type": "text", "text": PROMPT}]}], "reasoning": "high"}),
    events="/v1/ui/chat/{header:X-Workflow-Run-Id}/stream",
    text=("delta", "inputTextDelta"),
    channel=("id", "toolCallId"),
    terminal=("[DONE]",),
    control=(),
    ids="replay",
)
"""The UI message stream, which the AI SDK reads."""

WIRES: Final[Mapping[str, WireFormat]] = {"messages": MESSAGES, "ui": UI}


def find_wire(name: Path) -> WireFormat:
    """A wire by its name, or from a TOML file.

    Raises:
        ConfigError: The file cannot be read, or a name or value in it is invalid.
    """
    return WIRES.get(str(name)) or load_wire(name)
