"""The deadline that travels through a call."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent._util.clock import Deadline, utc_now

SECONDS = st.floats(min_value=-1e6, max_value=1e6)


class FakeClock:
    """A clock that stands until it is set."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def test_the_wall_clock_is_aware_utc() -> None:
    """No naive instant enters the package."""
    assert utc_now().utcoffset() == timedelta(0)


def test_without_a_limit_nothing_expires() -> None:
    """None means no limit in every place."""
    for deadline in (Deadline.after(None), Deadline.at(None), Deadline(None)):
        assert deadline.instant is None
        assert deadline.left() is None
        assert not deadline.expired
        assert deadline.bound(3.0) == 3.0
        assert deadline.bound(None) is None
        assert deadline.earlier(None) is deadline


def test_the_time_left_runs_down_to_zero() -> None:
    """It shrinks with the clock and is never negative."""
    clock = FakeClock()
    deadline = Deadline.after(5.0, clock=clock)
    assert (deadline.left(), deadline.expired) == (5.0, False)
    clock.now += 4.0
    assert (deadline.left(), deadline.expired) == (1.0, False)
    clock.now += 1.0
    assert (deadline.left(), deadline.expired) == (0.0, True)
    clock.now += 10.0
    assert (deadline.left(), deadline.expired) == (0.0, True)


@settings(deadline=None)
@given(instant=SECONDS, now=SECONDS)
def test_expired_is_having_nothing_left(instant: float, now: float) -> None:
    """The two never disagree."""
    deadline = Deadline.at(instant, clock=FakeClock(now))
    left = deadline.left()
    assert left is not None
    assert left >= 0.0
    assert deadline.expired == (left == 0.0)


@settings(deadline=None)
@given(limit=SECONDS, timeout=st.none() | SECONDS)
def test_a_timeout_is_cut_to_the_time_left(limit: float, timeout: float | None) -> None:
    """`bound` gives the smaller of the two."""
    deadline = Deadline.after(limit, clock=FakeClock(0.0))
    left = max(0.0, limit)
    assert deadline.bound(timeout) == (left if timeout is None else min(left, timeout))


@settings(deadline=None)
@given(first=st.none() | SECONDS, second=st.none() | SECONDS)
def test_the_earlier_of_two_limits_wins(
    first: float | None, second: float | None
) -> None:
    """`earlier` never makes a deadline later, and keeps its clock."""
    clock = FakeClock(0.0)
    both = Deadline.after(first, clock=clock).earlier(second)
    limits = [limit for limit in (first, second) if limit is not None]
    assert both.instant == (min(limits) if limits else None)
    clock.now = 1e7
    assert both.expired == bool(limits)


def test_the_repr_says_what_is_left() -> None:
    """A deadline in a log is read at a glance."""
    assert repr(Deadline.after(None)) == "Deadline(none)"
    clock = FakeClock()
    assert repr(Deadline.after(2.5, clock=clock)) == "Deadline(2.500 s left)"
