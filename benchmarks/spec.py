"""What a stream of a benchmark asks its model for; it travels as JSON in the prompt."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["batch", "timer", "flood", "silent"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One stream's work.

    Attributes:
        kind: `batch`: one timer gives all streams their token at once, as a batching model does. `timer`: a timer for
            each stream. `flood`: never waits. `silent`: makes nothing until it is stopped.
        name: How the benchmark calls the stream.
        tokens: How many there are.
        rate: Tokens per second, for `batch` and `timer`. Both begin when the benchmark says go.
        seconds: `flood` ends after this time, if `tokens` are not enough.
        offset: `timer` begins so much later, as a part of its period, so that not all timers fire at once.
        fill: So many tokens are made first, at once and each for a record of its own, and count from 0; the others
            follow when the benchmark says go.
    """

    kind: Kind
    name: str = ""
    tokens: int = 0
    rate: float = 50.0
    seconds: float = 0.0
    offset: float = 0.0
    fill: int = 0

    def to_json(self) -> str:
        """As it stands in a prompt."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, prompt: str) -> Spec:
        """From a prompt."""
        return cls(**json.loads(prompt))
