"""Metrics of several processes, as plain values that can be sent and added up."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias, final

import msgspec

Kind: TypeAlias = Literal["counter", "histogram", "gauge", "state"]
"""How the values of several processes become one: the lowest `state`, the sum of all others."""


@final
class Family(msgspec.Struct, frozen=True, kw_only=True):
    """One metric with all its samples.

    Attributes:
        name: Its name.
        text: What it counts.
        kind: How it is added up, and whether it stays when its process has ended.
        samples: The values. A key is the sample's name, and then the name and the value of each label.
    """

    name: str
    text: str
    kind: Kind
    samples: dict[tuple[str, ...], float]


def add(*processes: Iterable[Family]) -> list[Family]:
    """Add up the metrics of several processes."""
    total: dict[str, Family] = {}
    for families in processes:
        for family in families:
            if family.name not in total:
                total[family.name] = msgspec.structs.replace(family, samples=dict(family.samples))
                continue
            samples = total[family.name].samples
            for key, value in family.samples.items():
                if key not in samples:
                    samples[key] = value
                else:
                    samples[key] = min(samples[key], value) if family.kind == "state" else samples[key] + value
    return list(total.values())


def lasting(families: Iterable[Family]) -> list[Family]:
    """The metrics that never go down. They still count when their process has ended."""
    return [family for family in families if family.kind in {"counter", "histogram"}]
