"""Delays between attempts."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent._util.backoff import Backoff

BACKOFFS = st.builds(
    Backoff,
    base=st.floats(min_value=0.001, max_value=10.0),
    factor=st.floats(min_value=1.0, max_value=10.0),
    cap=st.floats(min_value=0.0, max_value=600.0),
)
ATTEMPTS = st.integers(min_value=0, max_value=10**6)
CHANCE = st.floats(min_value=0.0, max_value=1.0, exclude_max=True)


def test_the_bound_doubles_up_to_the_cap() -> None:
    """The first attempt has number 0."""
    backoff = Backoff(base=0.5, factor=2.0, cap=3.0)
    assert [backoff.bound(n) for n in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@settings(deadline=None)
@given(backoff=BACKOFFS, attempt=ATTEMPTS)
def test_the_bound_never_falls_and_never_passes_the_cap(
    backoff: Backoff, attempt: int
) -> None:
    """It holds for any number of attempts, where a float would overflow, too."""
    assert 0.0 <= backoff.bound(attempt) <= backoff.bound(attempt + 1) <= backoff.cap


@settings(deadline=None)
@given(backoff=BACKOFFS, attempt=ATTEMPTS, chance=CHANCE)
def test_the_delay_is_a_share_of_the_bound(
    backoff: Backoff, attempt: int, chance: float
) -> None:
    """Full jitter: from nothing to the whole bound."""
    delay = backoff.delay(attempt, lambda: chance)
    assert delay == chance * backoff.bound(attempt)
    assert 0.0 <= delay <= backoff.cap


def test_callers_that_failed_together_do_not_return_together() -> None:
    """Delays of one attempt spread over the whole range."""
    chance = random.Random(7)
    delays = [Backoff().delay(3, chance.random) for _ in range(1000)]
    quarters = {int(delay) for delay in delays}
    assert quarters == {0, 1, 2, 3}
