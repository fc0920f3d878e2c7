from math import inf

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.alarms import Alarm, Alarms


class Diary:
    """Notes when it was called."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, float]] = []

    def __call__(self, name: str) -> None:
        self.notes.append((name, round(trio.current_time(), 6)))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=12))
def test_each_fires_once_at_its_time_in_order_unless_cancelled(
    run_virtually: object, settings: list[tuple[int, int, bool]]
) -> None:
    """Each setting: when it is made, how much later it is due, and whether it is cancelled again at once."""

    async def run() -> None:
        alarms, diary, expected = Alarms(), Diary(), []
        begin = trio.current_time()

        async def set_one(name: str, after: int, later: int, cancelled: bool) -> None:
            await trio.sleep(after)
            alarm = alarms.set(trio.current_time() + later, lambda: diary(name))
            if cancelled:
                alarm.cancel()
                alarm.cancel()
                assert alarm.at == inf

        async with trio.open_nursery() as nursery:
            nursery.start_soon(alarms.run)
            for number, (after, later, cancelled) in enumerate(settings):
                nursery.start_soon(set_one, f"{number}", after, later, cancelled)
                if not cancelled:
                    expected.append((f"{number}", round(begin + after + later, 6)))
            await trio.sleep(30)
            nursery.cancel_scope.cancel()
        assert sorted(diary.notes) == sorted(expected)
        assert [at for _, at in diary.notes] == sorted(at for _, at in diary.notes)

    run_virtually(run)  # type: ignore[operator]


async def test_those_due_at_one_time_fire_in_the_order_of_setting(autojump_clock: MockClock) -> None:
    alarms, diary = Alarms(), Diary()
    for name in "abcdef":
        alarms.set(trio.current_time() + 5, lambda name=name: diary(name))
    with trio.move_on_after(6):
        await alarms.run()
    assert "".join(name for name, _ in diary.notes) == "abcdef"


async def test_an_earlier_one_wakes_the_timer(autojump_clock: MockClock) -> None:
    alarms, diary, begin = Alarms(), Diary(), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarms.run)
        await wait_all_tasks_blocked()
        alarms.set(begin + 50, lambda: diary("late"))
        await wait_all_tasks_blocked()
        alarms.set(begin + 5, lambda: diary("early"))
        await trio.sleep(10)
        assert diary.notes == [("early", begin + 5)]
        await trio.sleep(50)
        assert diary.notes[1:] == [("late", begin + 50)]
        nursery.cancel_scope.cancel()


async def test_one_that_is_due_while_nobody_runs_them_fires_when_somebody_does(autojump_clock: MockClock) -> None:
    alarms, diary = Alarms(), Diary()
    alarms.set(trio.current_time() + 1, lambda: diary("a"))
    await trio.sleep(5)
    assert diary.notes == []
    with trio.move_on_after(1):
        await alarms.run()
    assert [name for name, _ in diary.notes] == ["a"]


async def test_one_may_set_the_next(autojump_clock: MockClock) -> None:
    alarms, diary = Alarms(), Diary()

    def again() -> None:
        diary("a")
        alarms.set(trio.current_time() + 2, again)

    alarms.set(trio.current_time(), again)
    with trio.move_on_after(9):
        await alarms.run()
    assert len(diary.notes) == 5


async def test_one_that_comes_before_is_kept_and_one_that_comes_later_replaced(autojump_clock: MockClock) -> None:
    alarms, diary, begin = Alarms(), Diary(), trio.current_time()
    first = Alarm(inf, lambda: diary("never"))
    second = alarms.set_no_later(first, begin + 5, lambda: diary("second"))
    assert second is not first
    for at in (begin + 5, begin + 9):
        assert alarms.set_no_later(second, at, lambda: diary("never")) is second
    third = alarms.set_no_later(second, begin + 3, lambda: diary("third"))
    assert (second.at, third.at) == (inf, begin + 3)
    with trio.move_on_after(20):
        await alarms.run()
    assert diary.notes == [("third", begin + 3)]
    assert third.at == inf


@pytest.mark.parametrize("how", ["cancelled", "fired"])
async def test_a_spent_alarm_calls_nobody_again(how: str, autojump_clock: MockClock) -> None:
    diary = Diary()
    alarm = Alarm(trio.current_time(), lambda: diary("a"))
    if how == "cancelled":
        alarm.cancel()
    alarm.fire()
    alarm.fire()
    assert len(diary.notes) == (how == "fired")
