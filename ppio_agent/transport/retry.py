"""Whether an attempt is followed by another, and when. Pure.

The rule behind the table: a request is sent again only if it did nothing the first
time, or if doing it twice is the same as doing it once.

Source: client.md 2.3; RFC 9110 section 9.2.2 and 10.2.3.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime

from attrs import field, frozen

from ppio_agent._util.backoff import Backoff

__all__ = [
    "NO_RETRY",
    "Failure",
    "Outcome",
    "Retry",
    "RetryPolicy",
    "decide",
    "parse_date",
    "parse_retry_after",
]

_IDEMPOTENT = frozenset({"GET", "HEAD", "DELETE"})
_JITTER = 0.1
_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")


@frozen(kw_only=True)
class RetryPolicy:
    """How often and how patiently a request is tried again.

    Attributes:
        max_retries: Further attempts; 0 means none. A kept connection that the peer
            had closed is replaced once without counting.
        backoff: Delays where the peer names none.
        statuses: Answers after which another attempt makes sense at all.
        max_retry_after: Longest `Retry-After`, in seconds, that is waited for.

    Thread safety: immutable.
    """

    max_retries: int = 3
    backoff: Backoff = field(factory=Backoff, repr=False, eq=False)
    statuses: frozenset[int] = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
    max_retry_after: float = 120.0


NO_RETRY = RetryPolicy(max_retries=0)


class Failure(enum.Enum):
    """How an attempt that got no whole answer ended."""

    CONNECT = "connect"
    """No byte was sent: refused, no such host, TLS reset."""

    NO_ANSWER = "no answer"
    """Sent, at least in part; the connection ended before any byte of an answer."""

    CUT = "cut"
    """The connection ended inside the answer."""

    FINAL = "final"
    """Another attempt would end the same way: untrusted certificate, bad framing."""


@frozen(kw_only=True)
class Outcome:
    """What is known after an attempt that did not succeed.

    Attributes:
        number: How many attempts were made, this one included.
        method: HTTP method, upper case.
        keyed: Whether the request has an `Idempotency-Key`.
        run_once: Whether the peer is known to run a key only once.
        failure: How it ended without an answer; None if `status` is set.
        status: Status of the answer.
        reused: Whether it went over a kept connection.
        retry_after: Seconds the answer asks to wait.
        retryable: What the answer's body says of another attempt, if anything.
        nothing_ran: Whether the answer proves that nothing was started.
    """

    number: int
    method: str
    keyed: bool = False
    run_once: bool = False
    failure: Failure | None = None
    status: int | None = None
    reused: bool = False
    retry_after: float | None = None
    retryable: bool | None = None
    nothing_ran: bool = False

    @property
    def may_have_run(self) -> bool:
        """Whether the peer may have begun to do what it was asked."""
        if self.failure is not None:
            return self.failure is not Failure.CONNECT
        # The others of those that are tried again refuse before anything begins.
        return self.status in {409, 500, 502, 504} and not self.nothing_ran


@frozen
class Retry:
    """Try again.

    Attributes:
        delay: Seconds to wait before.
        counted: Whether it uses up one of the attempts.
    """

    delay: float
    counted: bool = True


def decide(
    policy: RetryPolicy,
    outcome: Outcome,
    *,
    left: float | None,
    random: Callable[[], float],
) -> Retry | None:
    """Return how to try again, or None to give up.

    Args:
        policy: How often and how patiently.
        outcome: What the last attempt came to.
        left: Seconds until the deadline; None means no limit.
        random: Gives a float in [0, 1).
    """
    if left == 0.0:
        return None
    if outcome.failure is Failure.NO_ANSWER and outcome.reused:
        # The peer closed it while it was kept. Its answer, had there been a run, would
        # have been cut, not absent; still only what may run twice is sent again.
        return Retry(0.0, counted=False) if _repeatable(outcome) else None
    if outcome.number > policy.max_retries or not _allowed(policy, outcome):
        return None
    asked = outcome.retry_after
    if asked is None:
        delay = policy.backoff.delay(outcome.number - 1, random)
    elif asked > policy.max_retry_after:
        return None
    else:
        delay = asked * (1 + _JITTER * random())
    # To wait out the whole time that is left would only hide the error.
    return None if left is not None and delay >= left else Retry(delay)


def _repeatable(outcome: Outcome) -> bool:
    return outcome.method in _IDEMPOTENT or outcome.keyed


def _allowed(policy: RetryPolicy, outcome: Outcome) -> bool:
    """Whether the table allows another attempt, time and number aside."""
    if outcome.failure is not None:
        return _allowed_failure(outcome)
    status = outcome.status
    if status not in policy.statuses or outcome.retryable is False:
        return False
    asked = outcome.retry_after is not None
    if outcome.method in _IDEMPOTENT:
        return status != 409
    if not outcome.keyed:
        return asked and status in {429, 503}
    if status in {502, 504}:
        return outcome.run_once or outcome.nothing_ran
    return asked if status == 409 else status != 500


def _allowed_failure(outcome: Outcome) -> bool:
    if outcome.failure is Failure.CONNECT:
        return True
    if outcome.failure is Failure.NO_ANSWER:
        run_once = outcome.keyed and outcome.run_once
        return outcome.method in _IDEMPOTENT or run_once
    return outcome.failure is Failure.CUT and outcome.method in _IDEMPOTENT


def parse_retry_after(
    value: str | None, *, date: str | None, now: datetime
) -> float | None:
    """Return the seconds a `Retry-After` header asks to wait.

    Args:
        value: Seconds, also fractional, or an HTTP date.
        date: The same answer's `Date`, against which a date is read, so that no two
            clocks are compared.
        now: Stands in for a `Date` that is absent or unreadable.

    Returns:
        None where it is absent, negative, past or unreadable.
    """
    value = (value or "").strip()
    if _SECONDS.fullmatch(value):
        seconds = float(value)
    else:
        until = parse_date(value)
        if until is None:
            return None
        seconds = (until - (parse_date(date) or now)).total_seconds()
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def parse_date(value: str | None) -> datetime | None:
    """Return the instant of an HTTP date; None where it is absent or unreadable."""
    try:
        found = parsedate_to_datetime(value or "")
    except (ValueError, TypeError, OverflowError):
        return None
    # A date with the zone "-0000" has no zone, but means UTC.
    return found if found.tzinfo else found.replace(tzinfo=timezone.utc)
