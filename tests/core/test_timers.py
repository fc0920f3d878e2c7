import weakref
from math import inf

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from crucible_trio.timers import Timer, Timers


class Diary:
    """Records which timers fired, and when."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, float]] = []

    def target(self, name: str) -> "Target":
        return Target(self, name)


class Target:
    """Writes its name into the diary when its timer fires."""

    def __init__(self, diary: Diary, name: str) -> None:
        self._diary = diary
        self._name = name

    def timer_fired(self) -> None:
        self._diary.notes.append((self._name, round(trio.current_time(), 6)))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), max_size=12))
def test_each_timer_fires_once_at_its_time_in_order_unless_cancelled(
    run_virtually: object, settings: list[tuple[int, int, bool]]
) -> None:
    """Each setting is: when the timer is set, how much later it is due, and whether it is cancelled immediately."""

    async def run() -> None:
        timers, diary, expected = Timers(), Diary(), []
        begin = trio.current_time()

        async def set_one(name: str, after: int, later: int, cancelled: bool) -> None:
            await trio.sleep(after)
            timer = timers.set(trio.current_time() + later, diary.target(name))
            if cancelled:
                timer.cancel()
                timer.cancel()
                assert timer.at == inf

        async with trio.open_nursery() as nursery:
            nursery.start_soon(timers.run)
            for number, (after, later, cancelled) in enumerate(settings):
                nursery.start_soon(set_one, f"{number}", after, later, cancelled)
                if not cancelled:
                    expected.append((f"{number}", round(begin + after + later, 6)))
            await trio.sleep(30)
            nursery.cancel_scope.cancel()
        assert sorted(diary.notes) == sorted(expected)
        assert [at for _, at in diary.notes] == sorted(at for _, at in diary.notes)

    run_virtually(run)  # type: ignore[operator]


async def test_timers_due_at_the_same_time_fire_in_the_order_they_were_set(autojump_clock: MockClock) -> None:
    timers, diary = Timers(), Diary()
    for name in "abcdef":
        timers.set(trio.current_time() + 5, diary.target(name))
    with trio.move_on_after(6):
        await timers.run()
    assert "".join(name for name, _ in diary.notes) == "abcdef"


async def test_an_earlier_timer_wakes_the_task_that_runs_them(autojump_clock: MockClock) -> None:
    timers, diary, begin = Timers(), Diary(), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        await wait_all_tasks_blocked()
        timers.set(begin + 50, diary.target("late"))
        await wait_all_tasks_blocked()
        timers.set(begin + 5, diary.target("early"))
        await trio.sleep(10)
        assert diary.notes == [("early", begin + 5)]
        await trio.sleep(50)
        assert diary.notes[1:] == [("late", begin + 50)]
        nursery.cancel_scope.cancel()


async def test_a_timer_due_before_run_fires_when_run_starts(autojump_clock: MockClock) -> None:
    timers, diary = Timers(), Diary()
    timers.set(trio.current_time() + 1, diary.target("a"))
    await trio.sleep(5)
    assert diary.notes == []
    with trio.move_on_after(1):
        await timers.run()
    assert [name for name, _ in diary.notes] == ["a"]


async def test_a_firing_timer_may_set_the_next(autojump_clock: MockClock) -> None:
    timers, diary = Timers(), Diary()

    class Again:
        def timer_fired(self) -> None:
            diary.target("a").timer_fired()
            timers.set(trio.current_time() + 2, self)

    timers.set(trio.current_time(), Again())
    with trio.move_on_after(9):
        await timers.run()
    assert len(diary.notes) == 5


async def test_set_no_later_keeps_an_earlier_timer_and_replaces_a_later_one(autojump_clock: MockClock) -> None:
    timers, diary, begin = Timers(), Diary(), trio.current_time()
    first = Timer(inf, diary.target("never"))
    second = timers.set_no_later(first, begin + 5, diary.target("second"))
    assert second is not first
    for at in (begin + 5, begin + 9):
        assert timers.set_no_later(second, at, diary.target("never")) is second
    third = timers.set_no_later(second, begin + 3, diary.target("third"))
    assert (second.at, third.at) == (inf, begin + 3)
    with trio.move_on_after(20):
        await timers.run()
    assert diary.notes == [("third", begin + 3)]
    assert third.at == inf


@pytest.mark.parametrize("how", ["cancelled", "fired"])
async def test_a_spent_timer_does_not_fire_again(how: str, autojump_clock: MockClock) -> None:
    diary = Diary()
    timer = Timer(trio.current_time(), diary.target("a"))
    if how == "cancelled":
        timer.cancel()
    timer.fire()
    timer.fire()
    assert len(diary.notes) == (how == "fired")


async def test_timers_that_are_due_shortly_after_one_another_fire_together_and_never_early(
    autojump_clock: MockClock,
) -> None:
    timers, diary, begin = Timers(), Diary(), trio.current_time()
    due = {f"{n}": round(begin + 5 + n / 500, 6) for n in range(500)}  # as the heartbeats of 5,000 silent streams
    for name, at in due.items():
        timers.set(at, diary.target(name))
    with trio.move_on_after(10):
        await timers.run()
    assert [name for name, _ in diary.notes] == list(due)
    assert all(0 <= at - due[name] <= 0.051 for name, at in diary.notes)
    assert len({at for _, at in diary.notes}) <= 21
    assert diary.notes[0] == ("0", begin + 5)


async def test_what_is_called_soon_does_not_wait_for_the_next_common_time(autojump_clock: MockClock) -> None:
    timers, diary, begin = Timers(), Diary(), trio.current_time()
    timers.set(begin + 5, diary.target("timer"))
    timers.set(begin + 5.04, diary.target("next"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        await trio.sleep(5.01)
        timers.call_soon(diary.target("soon"))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert diary.notes == [("timer", begin + 5), ("soon", begin + 5.01), ("next", begin + 5.05)]


async def test_a_timer_that_is_set_between_two_common_times_may_be_due_before_the_second(
    autojump_clock: MockClock,
) -> None:
    timers, diary, begin = Timers(), Diary(), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        timers.set(begin + 5, diary.target("a"))
        timers.set(begin + 9, diary.target("c"))
        await trio.sleep(6)
        timers.set(begin + 7, diary.target("b"))
        await trio.sleep(4)
        nursery.cancel_scope.cancel()
    assert diary.notes == [("a", begin + 5), ("b", begin + 7), ("c", begin + 9)]


@pytest.mark.parametrize("how", ["timers", "calls"])
async def test_other_tasks_run_while_many_timers_fire(how: str, autojump_clock: MockClock) -> None:
    timers, diary = Timers(), Diary()
    seen: list[int] = []

    class Again:
        def timer_fired(self) -> None:
            diary.target("a").timer_fired()
            if len(diary.notes) < 300:
                timers.call_soon(self)

    if how == "timers":
        for _ in range(300):
            timers.set(trio.current_time(), diary.target("a"))
    else:
        timers.call_soon(Again())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        while len(diary.notes) < 300:
            assert len(seen) < 1000, "the timers do not fire"
            await trio.lowlevel.checkpoint()
            seen.append(len(diary.notes))
        nursery.cancel_scope.cancel()
    assert len(set(seen)) > 3


@given(
    st.lists(
        st.tuples(st.integers(0, 6).map(lambda number: number * 0.05) | st.floats(0, 0.3), st.booleans()), max_size=20
    ),
    st.sampled_from([0.0, 0.025, 12_345.678]),
)
def test_timers_of_neighbouring_intervals_fire_once_in_the_order_of_their_times(
    run_virtually: object, settings: list[tuple[float, bool]], start: float
) -> None:
    """Each setting is: how much later than `start` the timer is due, and whether it is cancelled."""

    async def run() -> None:
        timers, fired = Timers(), []

        class Note:
            def __init__(self, number: int) -> None:
                self.number = number

            def timer_fired(self) -> None:
                fired.append((self.number, trio.current_time()))

        await trio.sleep(start)
        begin = trio.current_time()
        made = [timers.set(begin + later, Note(number)) for number, (later, _) in enumerate(settings)]
        for timer, (_, cancelled) in zip(made, settings, strict=True):
            if cancelled:
                timer.cancel()
        with trio.move_on_after(1):
            await timers.run()
        due = {number: begin + later for number, (later, cancelled) in enumerate(settings) if not cancelled}
        assert [number for number, _ in fired] == sorted(due, key=due.__getitem__)
        assert all(0 <= at - due[number] <= 0.0501 for number, at in fired)

    run_virtually(run)  # type: ignore[operator]


async def test_timers_with_one_time_keep_their_order_when_a_neighbour_fires_first(autojump_clock: MockClock) -> None:
    timers, diary, begin = Timers(), Diary(), trio.current_time()
    for name, at in (("b", 5.04), ("a", 5.0), ("c", 5.04)):
        timers.set(begin + at, diary.target(name))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        await trio.sleep(5.01)
        timers.set(begin + 5.04, diary.target("d"))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert diary.notes == [("a", begin + 5), *((name, begin + 5.05) for name in "bcd")]


async def test_the_earliest_timer_of_an_interval_wakes_the_task_in_any_order_of_set(
    autojump_clock: MockClock,
) -> None:
    timers, diary, begin = Timers(), Diary(), trio.current_time()
    timers.set(begin + 5.04, diary.target("b"))
    timers.set(begin + 5.01, diary.target("a"))
    with trio.move_on_after(9):
        await timers.run()
    assert diary.notes == [("a", begin + 5.01), ("b", begin + 5.06)]


async def test_due_timers_survive_the_cancellation_of_run_and_fire_once(autojump_clock: MockClock) -> None:
    timers, diary, begin = Timers(), Diary(), trio.current_time()
    scope = trio.CancelScope()

    class Stop:
        def timer_fired(self) -> None:
            scope.cancel()

    timers.set(begin, Stop())
    names = [f"{number}" for number in range(200)]
    for name in names:
        timers.set(begin, diary.target(name))
    with scope:
        await timers.run()
    assert scope.cancelled_caught
    assert 0 < len(diary.notes) < 200
    with trio.move_on_after(1):
        await timers.run()
    assert [name for name, _ in diary.notes] == names


async def test_a_due_timer_can_still_be_cancelled_or_kept(autojump_clock: MockClock) -> None:
    timers, diary, begin = Timers(), Diary(), trio.current_time()

    class Change:
        def timer_fired(self) -> None:
            last.cancel()
            assert timers.set_no_later(kept, begin + 9, diary.target("never")) is kept

    timers.set(begin, Change())
    for _ in range(100):  # more than fire in one pass
        timers.set(begin, diary.target("a"))
    kept, last = timers.set(begin, diary.target("kept")), timers.set(begin, diary.target("last"))
    with trio.move_on_after(20):
        await timers.run()
    assert [name for name, _ in diary.notes] == ["a"] * 100 + ["kept"]


async def test_a_timer_that_a_firing_timer_sets_in_the_past_fires_once(autojump_clock: MockClock) -> None:
    timers, diary, begin = Timers(), Diary(), trio.current_time()

    class Past:
        def timer_fired(self) -> None:
            timers.set(trio.current_time() - 3, diary.target("past"))

    timers.set(begin + 5, Past())
    timers.set(begin + 9, diary.target("later"))
    with trio.move_on_after(10):
        await timers.run()
    assert diary.notes == [("past", begin + 5), ("later", begin + 9)]


async def test_spent_timers_leave_nothing_behind(autojump_clock: MockClock) -> None:
    timers, diary, begin = Timers(), Diary(), trio.current_time()
    target = diary.target("x")
    gone = weakref.ref(target)
    timers.set(begin + 3600, target).cancel()
    del target
    assert gone() is None
    for number in range(100):
        timer = timers.set(begin + number / 7, diary.target("a"))
        if number % 2:
            timer.cancel()
    with trio.move_on_after(20):
        await timers.run()
    assert len(diary.notes) == 50
    assert (len(timers._buckets), len(timers._numbers), len(timers._due)) == (0, 0, 0)


@pytest.mark.parametrize("at", [inf, 1e308])
async def test_a_timer_that_is_never_due_is_accepted(at: float, autojump_clock: MockClock) -> None:
    timers, diary = Timers(), Diary()
    timers.set(at, diary.target("never"))
    with trio.move_on_after(10):
        await timers.run()
    assert diary.notes == []


async def test_a_call_soon_does_not_look_at_timers_that_are_not_due(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    timers, diary, begin = Timers(), Diary(), trio.current_time()
    for number in range(3):
        timers.set(begin + 60 + number, diary.target("a"))

    def look() -> float:
        pytest.fail("a look at the buckets")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        await wait_all_tasks_blocked()
        monkeypatch.setattr(timers, "_earliest", look)
        for _ in range(9):
            timers.call_soon(diary.target("soon"))
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(diary.notes) == 9
