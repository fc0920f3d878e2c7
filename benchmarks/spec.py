"""The specification of one stream: the prompt of its request, as JSON. The stand-in model generates accordingly."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["batch", "timer", "flood", "silent"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What one stream generates.

    Attributes:
        kind: `batch`: one timer gives every stream a token at the same time, as a batching model does. `timer`: each
            stream has a timer. `flood`: the model never waits. `silent`: no tokens until the stream is cancelled.
        name: Identifies the stream in the results.
        tokens: Number of tokens after the `fill`.
        rate: Tokens per second, for `batch` and `timer`. Both begin at `GET /bench/go`.
        seconds: `flood` ends after this time, or after `tokens`.
        offset: Delay of the first tick of a `timer`, as a part of its period, so that the timers do not all fire at the
            same time.
        fill: Number of tokens that are generated first, without waiting, each for a separate record. They count from 0.
            The others follow at `GET /bench/go`.
    """

    kind: Kind
    name: str = ""
    tokens: int = 0
    rate: float = 50.0
    seconds: float = 0.0
    offset: float = 0.0
    fill: int = 0

    def to_json(self) -> str:
        """The prompt of the stream's request."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, prompt: str) -> Spec:
        """Parse the prompt of a request."""
        return cls(**json.loads(prompt))
