"""Whether what was cut is gone on with, and when. Pure.

The pace is that of the transport's retries, since a cut connection to a run that can
be found again is to that run what a failed attempt is to a GET: nothing was done
twice, and nothing is lost by asking again.
"""

from __future__ import annotations

from collections.abc import Callable

from ppio_agent.exceptions import (
    NetworkError,
    NotFoundError,
    PPIOAgentError,
    ProtocolError,
    StreamInterruptedError,
)
from ppio_agent.transport import Failure, Outcome, RetryPolicy, decide

__all__ = ["is_cut", "next_resume"]


def is_cut(error: PPIOAgentError) -> bool:
    """Whether the connection failed, and not what runs at its other end."""
    return isinstance(error, (NetworkError, StreamInterruptedError))


def next_resume(
    policy: RetryPolicy,
    error: PPIOAgentError,
    *,
    resumes: int,
    left: float | None,
    random: Callable[[], float],
) -> float | None:
    """Return the seconds to wait before going on, or None to give up.

    Args:
        policy: How often and how patiently.
        error: What cut the answer, or what an attempt to go on with it came to.
        resumes: How many attempts in a row have brought nothing new.
        left: Seconds until the deadline; None means no limit.
        random: Gives a float in [0, 1).
    """
    # The run, its events or its sandbox are gone, or it is no run that answers there,
    # whatever the status says.
    if isinstance(error, (NotFoundError, ProtocolError)):
        return None
    outcome = Outcome(
        number=resumes + 1,
        method="GET",
        failure=_failure(error) if is_cut(error) else None,
        status=None if is_cut(error) else error.http_status,
        retry_after=error.retry_after,
        # What this answer said; what its class says of a POST does not matter here.
        retryable=vars(error).get("retryable"),
    )
    retry = decide(policy, outcome, left=left, random=random)
    return None if retry is None else retry.delay


def _failure(error: PPIOAgentError) -> Failure:
    final = isinstance(error, NetworkError) and not error.retryable
    return Failure.FINAL if final else Failure.CUT
