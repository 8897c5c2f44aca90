"""When a cut stream goes on: the pace of retries, and never without end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent._util.backoff import Backoff
from ppio_agent.client.resume import is_cut, next_resume
from ppio_agent.exceptions import (
    AgentUnreachableError,
    AuthenticationError,
    ConflictError,
    EventTooLargeError,
    InternalServerError,
    InvocationError,
    InvocationNotFoundError,
    NetworkError,
    PPIOAgentError,
    ReplayGoneError,
    RequestTimeoutError,
    ServiceUnavailableError,
    SessionNotFoundError,
    StreamInterruptedError,
)
from ppio_agent.transport import RetryPolicy

CUTS = [
    NetworkError("reset"),
    RequestTimeoutError("silent", phase="idle"),
    StreamInterruptedError("no end"),
]
REFUSALS = [
    AgentUnreachableError("starting", http_status=502),
    ServiceUnavailableError("busy", http_status=503),
    InternalServerError("oops", http_status=500),
]
FINAL = [
    InvocationNotFoundError("unknown", http_status=404),
    ReplayGoneError("forgotten", http_status=410),
    SessionNotFoundError("gone", http_status=502),
    AuthenticationError("who?", http_status=401),
    ConflictError("paused", http_status=409),
    EventTooLargeError("too large"),
    NetworkError("untrusted", retryable=False),
    ServiceUnavailableError("no use", http_status=503, retryable=False),
]


def ask(
    error: PPIOAgentError,
    *,
    resumes: int = 0,
    left: float | None = None,
    random: float = 0.5,
    max_retries: int = 3,
) -> float | None:
    return next_resume(
        RetryPolicy(max_retries=max_retries),
        error,
        resumes=resumes,
        left=left,
        random=lambda: random,
    )


@given(
    error=st.sampled_from(CUTS + REFUSALS),
    max_retries=st.integers(0, 10),
    resumes=st.integers(0, 20),
    left=st.none() | st.floats(0, 100),
    random=st.floats(0, 1, exclude_max=True),
)
def test_goes_on_within_number_time_and_pace(
    error: PPIOAgentError,
    max_retries: int,
    resumes: int,
    left: float | None,
    random: float,
) -> None:
    """At most so many times in a row, never past the deadline, never too fast."""
    delay = ask(
        error, resumes=resumes, left=left, random=random, max_retries=max_retries
    )

    if resumes >= max_retries or left == 0:
        assert delay is None
    elif delay is None:
        assert left is not None
        assert Backoff().delay(resumes, lambda: random) >= left
    else:
        assert 0 <= delay <= Backoff().bound(resumes)
        assert left is None or delay < left


@given(
    error=st.sampled_from(FINAL),
    resumes=st.integers(0, 3),
    random=st.floats(0, 1, exclude_max=True),
)
def test_never_goes_on_where_it_is_no_use(
    error: PPIOAgentError, resumes: int, random: float
) -> None:
    """What is gone, refused or untrusted is so the next time, too."""
    assert ask(error, resumes=resumes, random=random) is None


@pytest.mark.parametrize(("asked", "delay"), [(2.0, 2.1), (9999.0, None)])
def test_waits_as_long_as_it_is_told(asked: float, delay: float | None) -> None:
    """A `Retry-After` is kept to, unless it is absurd."""
    error = ServiceUnavailableError("busy", http_status=503)
    error.retry_after = asked

    assert ask(error, random=0.5) == pytest.approx(delay)


def test_what_is_a_cut() -> None:
    """The connection's failures, not the agent's."""
    assert all(map(is_cut, CUTS))
    assert not any(is_cut(e) for e in [*REFUSALS, InvocationError("boom")])
