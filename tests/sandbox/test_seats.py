"""Seats: so many in all, and so many of one tenant."""

from __future__ import annotations

import pytest

from ppio_agent.exceptions import RateLimitError, ServerBusyError
from ppio_agent.sandbox.seats import Seats


def test_the_next_is_refused_until_one_is_left() -> None:
    """Who has all of its own by 429, who finds none by 503, both with a hint."""
    seats = Seats("readings", most=3, most_of_one=2, hint=7.0, cure="close one")
    seats.take("red")
    with seats.taken("red"), seats.taken("blue"):
        with pytest.raises(
            RateLimitError, match="2 readings of this key are under way: close one"
        ) as own:
            seats.take("red")
        with pytest.raises(ServerBusyError, match="all 3 readings") as all_:
            seats.take("blue")
        assert own.value.retry_after == all_.value.retry_after == 7.0
        assert seats.count == 3
    seats.leave("red")

    assert seats.count == 0
    seats.wait_empty(0.0)
    with pytest.raises(ValueError, match="x"), seats.taken("red"):
        raise ValueError("x")
    assert seats.count == 0
