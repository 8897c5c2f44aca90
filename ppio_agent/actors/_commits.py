"""What a turn leaves in the store: its commit."""

from __future__ import annotations

import logging

from ppio_agent.storage.actors.ends import failure
from ppio_agent.storage.actors.records import Cancellation, TurnCommit
from ppio_agent.wire.actors import RequestStatus

from . import _progress
from ._turn import Turn

__all__ = ["commit_of", "refused", "supersede"]

_log = logging.getLogger(__name__)

_FAILED = RequestStatus.FAILED
_REFUSED = failure("commit_failed")


def commit_of(turn: Turn, *, take: bool) -> TurnCommit:
    """Return the commit of a turn that has ended.

    Args:
        turn: It.
        take: Whether the next request is begun with it.
    """
    record = turn.record
    commit = TurnCommit(record.message_id, turn.status or _FAILED, turn.data)
    commit.take = take
    commit.state_ttl = turn.activation.state_ttl
    commit.crash_attempts = turn.cell.type.options.supervision.crash_attempts
    if not turn.accepted:
        commit.request = record
    if turn.etag is not None or turn.writes is not None:
        commit.etag = turn.etag
        commit.state = turn.state_ops()
        commit.keep = turn.keep
    if turn.outbox is not None:
        commit.outbox = turn.outbox
    if turn.reminders is not None:
        commit.reminders = turn.reminders
    if turn.steps:
        commit.progress = _progress.rest(turn)
    if turn.dead is not None:
        commit.dead = turn.dead
    return commit


def refused(turn: Turn, commit: TurnCommit, error: Exception) -> TurnCommit:
    """Fail a turn with whose commit the store can do nothing, now or later.

    Returns:
        The commit of that.

    Raises:
        Exception: The error, if not even that can be committed.
    """
    if commit.data is _REFUSED:  # it was not for what the turn left
        raise error
    _log.error(
        "the store cannot keep what request %s to actor %s has done",
        commit.message_id,
        turn.cell.actor_id,
        exc_info=error,
    )
    turn.fail(_REFUSED)
    return commit_of(turn, take=commit.take)


def supersede(turn: Turn) -> None:
    """End a turn that another request has interrupted, and the store knew nothing of."""
    if turn.how is Cancellation.CANCEL:
        turn.fail(failure("cancelled"), RequestStatus.CANCELLED)
        return
    keep = turn.how is Cancellation.INTERRUPT and turn.keep
    writes, etag = turn.writes, turn.etag
    turn.fail(failure("superseded"), RequestStatus.CANCELLED)
    if keep:
        turn.writes, turn.etag = writes, etag
