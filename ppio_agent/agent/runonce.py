"""What a request with a known key gets: the run of before, or a new one. Pure.

A retry of an invocation is safe because of this table: the handler runs once for a
key, unless the first run was ended only because its caller was lost.
"""

from __future__ import annotations

import enum

from attrs import frozen

from .context import CancelReason
from .states import InvocationState

__all__ = ["Standing", "Verdict", "decide"]

# Reasons for which a run ended although nobody wanted it to.
_LOST: tuple[CancelReason, ...] = ("disconnect", "shutdown", "stalled")


class Verdict(enum.Enum):
    """What to do with a request whose key is known."""

    JOIN = "wait for the same run, or take its stored end"
    RUN_AGAIN = "the key is free again: a new run, one attempt further"
    CONFLICT = "the key belongs to another body"
    STILL_CANCELLING = "the key will be free when user code has ended"


@frozen(kw_only=True)
class Standing:
    """What is known of the run that has the key.

    Attributes:
        fingerprint: Of the entrypoint and the body it was started with; None if
            nothing was noted, as without a key.
        state: Where it stands.
        confirmed: Whether its user code has ended.
        cancel_reason: Why its end was asked for, or None.
    """

    fingerprint: bytes | None
    state: InvocationState
    confirmed: bool
    cancel_reason: CancelReason | None


def decide(standing: Standing, fingerprint: bytes) -> Verdict:
    """Return what a further request with this fingerprint gets."""
    if standing.fingerprint != fingerprint:
        return Verdict.CONFLICT
    if standing.cancel_reason not in _LOST:
        return Verdict.JOIN
    if standing.state is InvocationState.CANCELLING:
        return Verdict.STILL_CANCELLING
    if standing.state is not InvocationState.CANCELLED:
        return Verdict.JOIN  # it came to an end of its own before the cancel did
    return Verdict.RUN_AGAIN if standing.confirmed else Verdict.STILL_CANCELLING
