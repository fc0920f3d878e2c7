from math import inf

from hypothesis import given
from hypothesis import strategies as st

from crucible_trio.deadlines import DeadlineClock


def new_clock(**limits: float) -> DeadlineClock:
    return DeadlineClock(**{"now": 0, "first_token": 10, "idle": 5, "total": 100, "grace": 20, **limits})


def test_each_deadline_expires_at_its_time_and_is_named() -> None:
    clock = new_clock()
    clock.wait_begins(0, 0)
    assert clock.next_deadline(0) == 10
    assert clock.expired(9.9, 0) is None
    assert clock.expired(10, 0) == "first_token_deadline"
    clock.piece_came()
    assert clock.expired(10, 0) is None
    clock.wait_begins(11, 0)
    assert clock.next_deadline(0) == 16
    assert clock.expired(15.9, 0) is None
    assert clock.expired(16, 0) == "idle_deadline"
    assert clock.expired(100, 0) == "total_deadline"


def test_a_continued_wait_keeps_its_start_time() -> None:
    clock = new_clock()
    clock.wait_begins(1, 0)
    clock.wait_begins(8, 0)
    assert clock.next_deadline(0) == 11


def test_time_queued_before_a_wait_does_not_lengthen_it() -> None:
    clock = new_clock()
    clock.wait_begins(30, 25)
    assert clock.next_deadline(25) == 40
    assert clock.next_deadline(28) == 43
    assert clock.expired(42, 28) is None
    assert clock.expired(43, 28) == "first_token_deadline"


def test_grace_runs_only_while_no_reader_is_attached() -> None:
    clock = new_clock()
    assert clock.next_deadline(0) == 100
    clock.last_reader_left(3)
    assert clock.next_deadline(0) == 23
    assert clock.expired(22.9, 0) is None
    assert clock.expired(23, 0) == "grace"
    clock.reader_attached()
    assert clock.expired(50, 0) is None
    clock.last_reader_left(60)
    assert clock.next_deadline(0) == 80


def test_the_total_is_named_first_when_several_have_expired() -> None:
    clock = new_clock()
    clock.wait_begins(0, 0)
    clock.last_reader_left(0)
    assert clock.expired(20, 0) == "grace"
    assert clock.expired(100, 0) == "total_deadline"


STEP = st.one_of(
    st.tuples(st.just("wait_begins"), st.floats(0, 5)),
    st.tuples(st.sampled_from(["piece_came", "reader_attached", "last_reader_left"]), st.just(0.0)),
)


@given(st.lists(st.tuples(st.floats(0, 30), STEP), max_size=10))
def test_expiry_begins_exactly_at_the_next_deadline(steps: list[tuple[float, tuple[str, float]]]) -> None:
    clock = new_clock(total=inf)
    now = queued = 0.0
    for pause, (step, queued_more) in steps:
        now += pause
        queued += queued_more
        match step:
            case "wait_begins":
                clock.wait_begins(now, queued)
            case "last_reader_left":
                clock.last_reader_left(now)
            case _:
                getattr(clock, step)()
        deadline = clock.next_deadline(queued)
        if deadline < inf:
            assert clock.expired(deadline, queued) is not None
            assert clock.expired(deadline - 1e-6, queued) is None
        else:
            assert clock.expired(1e12, queued) is None


def test_an_expected_reader_has_its_own_time_or_a_longer_grace_period() -> None:
    for grace, may_be_late, ends in ((20, True, 23), (20, False, 8), (1, True, 8), (1, False, 8)):
        clock = new_clock(grace=grace)
        clock.reader_expected(3, within=5, may_be_late=may_be_late)
        assert clock.next_deadline(0) == ends
        assert clock.expired(ends, 0) == "grace"
        clock.reader_attached()
        assert clock.expired(ends, 0) is None
