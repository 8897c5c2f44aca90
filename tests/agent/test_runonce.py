"""What a request with a known key gets."""

from __future__ import annotations

import pytest

from ppio_agent.agent import InvocationState
from ppio_agent.agent.context import CancelReason
from ppio_agent.agent.runonce import Standing, Verdict, decide

S, V = InvocationState, Verdict


@pytest.mark.parametrize(
    ("state", "confirmed", "reason", "expected"),
    [
        (S.PENDING, False, None, V.JOIN),
        (S.RUNNING, False, None, V.JOIN),
        (S.SUCCEEDED, True, None, V.JOIN),
        (S.FAILED, True, None, V.JOIN),
        (S.TIMED_OUT, False, None, V.JOIN),
        (S.CANCELLING, False, "client", V.JOIN),
        (S.CANCELLED, True, "client", V.JOIN),
        (S.CANCELLING, False, "disconnect", V.STILL_CANCELLING),
        (S.CANCELLED, False, "disconnect", V.STILL_CANCELLING),
        (S.CANCELLED, True, "disconnect", V.RUN_AGAIN),
        (S.CANCELLED, True, "shutdown", V.RUN_AGAIN),
        (S.CANCELLED, True, "stalled", V.RUN_AGAIN),
        (S.SUCCEEDED, True, "disconnect", V.JOIN),
        (S.TIMED_OUT, True, "disconnect", V.JOIN),
    ],
)
def test_the_same_body_gets_the_run_or_a_new_one(
    state: InvocationState,
    confirmed: bool,
    reason: CancelReason | None,
    expected: Verdict,
) -> None:
    """A new one only if the first ended because its caller was lost."""
    standing = Standing(
        fingerprint=b"f", state=state, confirmed=confirmed, cancel_reason=reason
    )
    assert decide(standing, b"f") is expected
    assert decide(standing, b"other") is V.CONFLICT


def test_a_run_without_a_noted_body_is_nobodys_to_join() -> None:
    """Its id was generated, and somebody now sends it as a key."""
    standing = Standing(
        fingerprint=None, state=S.RUNNING, confirmed=False, cancel_reason=None
    )
    assert decide(standing, b"f") is V.CONFLICT
