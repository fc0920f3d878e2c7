"""Adding up the metrics of several processes."""

from __future__ import annotations

import msgspec

from crucible_trio.totals import Family, Kind, add, lasting


def family(name: str, kind: Kind, **samples: float) -> Family:
    return Family(name=name, text=name, kind=kind, samples={(key,): value for key, value in samples.items()})


def test_equal_samples_are_added_and_others_stay() -> None:
    one = [family("a", "counter", x=1, y=2), family("g", "gauge", x=1)]
    two = [family("a", "counter", y=3, z=4), family("h", "histogram", x=5)]
    assert add(one, two) == [
        family("a", "counter", x=1, y=5, z=4),
        family("g", "gauge", x=1),
        family("h", "histogram", x=5),
    ]


def test_of_a_state_the_lowest_value_counts() -> None:
    up, down = [family("up", "state", x=1, y=1)], [family("up", "state", x=0, z=1)]
    for order in ((up, down), (down, up)):
        assert {key: value for each in add(*order) for key, value in each.samples.items()} == {
            ("x",): 0,
            ("y",): 1,
            ("z",): 1,
        }


def test_adding_changes_no_operand() -> None:
    one, two = [family("a", "counter", x=1)], [family("a", "counter", x=1)]
    assert add(one, two, one) == [family("a", "counter", x=3)]
    assert one == two == [family("a", "counter", x=1)]


def test_only_what_never_goes_down_lasts() -> None:
    kinds: list[Kind] = ["counter", "gauge", "histogram", "state"]
    assert [each.kind for each in lasting([family(kind, kind, x=1) for kind in kinds])] == ["counter", "histogram"]


def test_families_survive_the_way_to_another_process() -> None:
    families = [family("a", "counter", x=1.5), family("b", "state")]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(families), type=list[Family]) == families
