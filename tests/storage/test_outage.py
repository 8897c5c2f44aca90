"""A store of nonces that does not answer: how long it is waited for, and how often."""

from __future__ import annotations

import pytest

from ppio_agent.exceptions import RateLimitError, ServiceUnavailableError
from ppio_agent.storage.outage import Outage


def ask(outage: Outage, error: Exception) -> None:
    with outage.guard():
        raise error


def test_for_a_second_after_a_failure_nothing_is_asked() -> None:
    """Everybody is refused at once; then one may try again."""
    now = [0.0]
    outage = Outage(OSError, KeyError, clock=lambda: now[0])
    error = ConnectionError()
    asked = []
    for instant in (0.0, 0.9, 1.0, 1.5, 2.0):
        now[0] = instant
        with pytest.raises(ServiceUnavailableError, match="cannot be told") as caught:
            ask(outage, error)
        if caught.value.__cause__ is error:
            asked.append(instant)
    assert asked == [0.0, 1.0, 2.0]


def test_what_a_store_says_is_no_failure() -> None:
    """That a key has too many nonces, for one."""
    outage = Outage(OSError)
    for _ in range(2):
        with pytest.raises(RateLimitError):
            ask(outage, RateLimitError("too many"))
