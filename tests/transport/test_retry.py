"""The table of retries."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.transport.retry import (
    NO_RETRY,
    Failure,
    Outcome,
    Retry,
    RetryPolicy,
    decide,
    parse_retry_after,
)

GET = Outcome(number=1, method="GET")
KEYED = Outcome(number=1, method="POST", keyed=True)
BARE = Outcome(number=1, method="POST")
ONCE = evolve(KEYED, run_once=True)
POLICY = RetryPolicy()
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def _decide(
    outcome: Outcome, policy: RetryPolicy = POLICY, left: float | None = None
) -> Retry | None:
    return decide(policy, outcome, left=left, random=lambda: 0.5)


def _goes_on(outcome: Outcome, **how: object) -> bool:
    return _decide(evolve(outcome, **how)) is not None


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"failure": Failure.CONNECT}, (True, True, True, True)),
        ({"failure": Failure.NO_ANSWER}, (True, False, True, False)),
        ({"failure": Failure.NO_ANSWER, "reused": True}, (True, True, True, False)),
        ({"failure": Failure.CUT}, (True, False, False, False)),
        ({"failure": Failure.FINAL}, (False, False, False, False)),
        ({"status": 408}, (True, True, True, False)),
        ({"status": 425}, (True, True, True, False)),
        ({"status": 429}, (True, True, True, False)),
        ({"status": 503}, (True, True, True, False)),
        ({"status": 429, "retry_after": 1.0}, (True, True, True, True)),
        ({"status": 503, "retry_after": 1.0}, (True, True, True, True)),
        ({"status": 408, "retry_after": 1.0}, (True, True, True, False)),
        ({"status": 502}, (True, False, True, False)),
        ({"status": 504}, (True, False, True, False)),
        ({"status": 502, "nothing_ran": True}, (True, True, True, False)),
        ({"status": 500}, (True, False, False, False)),
        ({"status": 500, "retry_after": 1.0}, (True, False, False, False)),
        ({"status": 409}, (False, False, False, False)),
        ({"status": 409, "retry_after": 1.0}, (False, True, True, False)),
    ],
)
def test_the_table(how: dict[str, object], expected: tuple[bool, ...]) -> None:
    """Each row of client.md 2.3, for GET, keyed POST, the same run-once, other POST."""
    assert tuple(_goes_on(o, **how) for o in (GET, KEYED, ONCE, BARE)) == expected


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413, 422, 418])
def test_refusals_are_final(status: int) -> None:
    """No method is tried again after a refusal, whatever `Retry-After` says."""
    for outcome in (GET, KEYED, ONCE, BARE):
        assert not _goes_on(outcome, status=status, retry_after=1.0)


def test_the_body_wins_over_the_table() -> None:
    """`retryable: false` ends it; `true` allows nothing the table does not."""
    assert not _goes_on(GET, status=503, retryable=False)
    assert not _goes_on(BARE, status=500, retryable=True)


def test_a_closed_kept_connection_is_replaced_without_counting() -> None:
    """At once, even where no retries are wanted, and not counted."""
    stale = evolve(KEYED, failure=Failure.NO_ANSWER, reused=True, number=9)
    assert _decide(stale, NO_RETRY) == Retry(0.0, counted=False)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"failure": Failure.CONNECT}, False),
        ({"failure": Failure.NO_ANSWER}, True),
        ({"failure": Failure.NO_ANSWER, "reused": True}, True),
        ({"failure": Failure.CUT}, True),
        ({"status": 429}, False),
        ({"status": 503}, False),
        ({"status": 504}, True),
        ({"status": 502}, True),
        ({"status": 502, "nothing_ran": True}, False),
    ],
)
def test_what_may_have_been_obeyed(how: dict[str, object], expected: bool) -> None:
    """All that was sent and not refused."""
    assert evolve(ONCE, **how).may_have_run is expected


def test_the_number_of_attempts_is_bounded() -> None:
    """`max_retries` further attempts follow the first."""
    made = [_goes_on(evolve(GET, number=n), status=503) for n in range(1, 6)]
    assert made == [True, True, True, False, False]
    assert _decide(evolve(GET, status=503), NO_RETRY) is None


def test_backoff_grows_and_is_jittered() -> None:
    """The bound doubles from half a second on; half of it here."""
    delays = [
        _decide(evolve(GET, status=503, number=n), RetryPolicy(max_retries=9))
        for n in (1, 2, 3, 9)
    ]
    assert delays == [Retry(0.25), Retry(0.5), Retry(1.0), Retry(4.0)]


def test_retry_after_is_kept_with_little_jitter() -> None:
    """It is a promise of the peer, so at most a tenth is added."""
    assert _decide(evolve(GET, status=503, retry_after=2.0)) == Retry(2.1)


def test_retry_after_beyond_the_limit_or_the_deadline_ends_it() -> None:
    """Nobody waits for two minutes, or to be told what is known now."""
    assert _decide(evolve(GET, status=503, retry_after=121.0)) is None
    assert _decide(evolve(GET, status=503, retry_after=2.0), left=2.0) is None
    assert _decide(evolve(GET, status=503), left=0.2) is None


_outcomes = st.builds(
    Outcome,
    number=st.integers(1, 10),
    method=st.just("POST"),
    keyed=st.booleans(),
    run_once=st.booleans(),
    failure=st.none() | st.sampled_from(Failure),
    status=st.integers(100, 599),
    reused=st.booleans(),
    retry_after=st.none() | st.floats(0.001, 1000),
    retryable=st.none() | st.booleans(),
    nothing_ran=st.booleans(),
)


@given(_outcomes, st.none() | st.floats(0, 1000), st.floats(0, 1, exclude_max=True))
@settings(max_examples=100)
def test_a_post_is_sent_twice_only_if_it_did_nothing_or_may_run_twice(
    outcome: Outcome, left: float | None, random: float
) -> None:
    """Whatever else is known, and never beyond the deadline."""
    found = decide(POLICY, outcome, left=left, random=lambda: random)
    if found is None:
        return
    assert left is None or found.delay < left
    assert outcome.number <= POLICY.max_retries or not found.counted
    if not outcome.keyed:
        refused = outcome.status in {429, 503} and outcome.retry_after is not None
        unsent = outcome.failure is Failure.CONNECT
        assert unsent or (outcome.failure is None and refused)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1", 1.0), (" 1.5 ", 1.5), ("9999", 9999.0),
        ("0", None), ("-5", None), ("soon", None), ("", None), (None, None),
        ("nan", None), ("inf", None), ("1e999", None), ("1 s", None),
        ("1e3", None), ("1_0", None), ("٣", None), ("1.", None), ("9" * 400, None),
    ],
)  # fmt: skip
def test_retry_after_in_seconds(value: str | None, expected: float | None) -> None:
    """Positive seconds, also fractional; all else counts as absent."""
    assert parse_retry_after(value, date=None, now=NOW) == expected


def test_retry_after_as_a_date_is_relative_to_the_answers_own() -> None:
    """Clocks that differ do not matter, unless the answer has no date."""
    date = format_datetime(NOW + timedelta(days=3), usegmt=True)
    later = format_datetime(NOW + timedelta(days=3, seconds=7), usegmt=True)
    assert parse_retry_after(later, date=date, now=NOW) == 7.0
    assert parse_retry_after(date, date=later, now=NOW) is None
    soon = format_datetime(NOW + timedelta(seconds=4), usegmt=True)
    assert parse_retry_after(soon, date=None, now=NOW) == 4.0
    assert parse_retry_after(soon, date="soon", now=NOW) == 4.0
    assert parse_retry_after("Fri, 02 Jan 2026 03:04:09 -0000", date=None, now=NOW) == 4


@given(st.text(max_size=40), st.none() | st.text(max_size=40))
@settings(max_examples=100)
def test_retry_after_never_fails(value: str, date: str | None) -> None:
    """Whatever a peer writes, it is a positive number or nothing."""
    found = parse_retry_after(value, date=date, now=NOW)
    assert found is None or found > 0
