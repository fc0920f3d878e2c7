"""A comparison alternates the two checkouts and judges the ratio of their medians in the right direction."""

from __future__ import annotations

import pytest

from benchmarks.compare import compare, order
from benchmarks.scenarios.scenario import Metric

CPU = Metric(name="cpu", label="CPU", unit="µs")
RATE = Metric(name="rate", label="rate", unit="/s", better="higher")


def test_the_order_of_the_sides_alternates() -> None:
    assert list(order(3)) == ["base", "new", "new", "base", "base", "new"]


@pytest.mark.parametrize(
    ("factor", "cpu_is_worse", "rate_is_worse"), [(1.0, False, False), (1.06, True, False), (0.94, False, True)]
)
def test_a_comparison_judges_medians(factor: float, cpu_is_worse: bool, rate_is_worse: bool) -> None:
    base = [{"cpu": value, "rate": 10 * value, "other": 0.0} for value in (10.0, 20.0, 900.0)]
    new = [{"cpu": factor * value, "rate": factor * 10 * value} for value in (10.0, 20.0, 30.0)]
    cpu, rate = compare((CPU, RATE), {"base": base, "new": new})
    assert (cpu.ratio, rate.ratio) == (pytest.approx(factor), pytest.approx(factor))
    assert cpu.pair_ratios == pytest.approx([factor, factor, factor / 30])
    assert (cpu.is_worse, rate.is_worse) == (cpu_is_worse, rate_is_worse)
    assert f"base 20 (10 to 900), new {20 * factor:.3g} (" in str(cpu)
    assert f"ratio {factor:.3f}, pairs {factor:.3f} ({factor / 30:.3f} to {factor:.3f})" in str(cpu)
