from math import inf

from hypothesis import given
from hypothesis import strategies as st

from crucible_trio.deadlines import DeadlineClock


def clocks(**limits: float) -> DeadlineClock:
    return DeadlineClock(**{"now": 0, "first_token": 10, "idle": 5, "total": 100, "grace": 20, **limits})


def test_each_deadline_expires_at_its_time_and_is_named() -> None:
    watched = clocks()
    watched.wait_begins(0, 0)
    assert watched.next_deadline(0) == 10
    assert watched.expired(9.9, 0) is None
    assert watched.expired(10, 0) == "first_token_deadline"
    watched.piece_came()
    assert watched.expired(10, 0) is None
    watched.wait_begins(11, 0)
    assert watched.next_deadline(0) == 16
    assert watched.expired(15.9, 0) is None
    assert watched.expired(16, 0) == "idle_deadline"
    assert watched.expired(100, 0) == "total_deadline"


def test_a_continued_wait_keeps_its_start_time() -> None:
    watched = clocks()
    watched.wait_begins(1, 0)
    watched.wait_begins(8, 0)
    assert watched.next_deadline(0) == 11


def test_time_queued_before_a_wait_does_not_lengthen_it() -> None:
    watched = clocks()
    watched.wait_begins(30, 25)
    assert watched.next_deadline(25) == 40
    assert watched.next_deadline(28) == 43
    assert watched.expired(42, 28) is None
    assert watched.expired(43, 28) == "first_token_deadline"


def test_grace_runs_only_while_no_reader_is_attached() -> None:
    watched = clocks()
    assert watched.next_deadline(0) == 100
    watched.last_reader_left(3)
    assert watched.next_deadline(0) == 23
    assert watched.expired(22.9, 0) is None
    assert watched.expired(23, 0) == "grace"
    watched.reader_attached()
    assert watched.expired(50, 0) is None
    watched.last_reader_left(60)
    assert watched.next_deadline(0) == 80


def test_the_total_is_named_first_when_several_have_expired() -> None:
    watched = clocks()
    watched.wait_begins(0, 0)
    watched.last_reader_left(0)
    assert watched.expired(20, 0) == "grace"
    assert watched.expired(100, 0) == "total_deadline"


STEP = st.one_of(
    st.tuples(st.just("wait_begins"), st.floats(0, 5)),
    st.tuples(st.sampled_from(["token_came", "joined", "alone"]), st.just(0.0)),
)


@given(st.lists(st.tuples(st.floats(0, 30), STEP), max_size=10))
def test_expiry_begins_exactly_at_the_next_deadline(steps: list[tuple[float, tuple[str, float]]]) -> None:
    watched = clocks(total=inf)
    now = queued = 0.0
    for pause, (step, queued_more) in steps:
        now += pause
        queued += queued_more
        match step:
            case "wait_begins":
                watched.wait_begins(now, queued)
            case "alone":
                watched.last_reader_left(now)
            case _:
                getattr(watched, step)()
        deadline = watched.next_deadline(queued)
        if deadline < inf:
            assert watched.expired(deadline, queued) is not None
            assert watched.expired(deadline - 1e-6, queued) is None
        else:
            assert watched.expired(1e12, queued) is None
