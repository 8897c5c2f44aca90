"""One sandbox for one conversation, whichever processes begin it at the same time.

The sandboxes of a conversation carry its name as metadata, so any process finds them.
Two processes that find none create one each. Then the first by the platform's
`startedAt`, and by id among equals, is the one; who made another kills it before any
invocation. Why all come to the same one:

* A start only ever moves later, and is fixed once the agent answers: the local platform
  counts from the acceptance until then. So the first of a list is the one if it was
  ready before the list was asked for: what stands behind it stays behind it.
* What such a list did not show was accepted after it, so it started later than the one
  that was ready already. Between that start and the list lie two round trips at least,
  more than the millisecond to which starts are rounded.
* Everybody decides by such a list: who created looks again once its own is ready, and
  who found another's waits until that is ready, then looks again.

That holds for a platform whose list shows what was accepted before, as the local one's
does. Where a list lags behind, two sandboxes may be kept, each by its process, until
one is closed or expires; those that come later take the older one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, TypeVar

from ppio_agent.exceptions import (
    ConflictError,
    SessionNotFoundError,
    ValidationError,
)
from ppio_agent.wire.headers import valid_session_id
from ppio_agent.wire.json import Json
from ppio_agent.wire.models import ListedSandbox

__all__ = [
    "check_session_id",
    "conversation_metadata",
    "in_order",
    "session_id_of",
    "settle",
]

_SESSION, _TEMPLATE = "ppio_session", "ppio_template"

# A round that does not settle has seen a sandbox end or an older one come up.
_ROUNDS = 10


class _Held(Protocol):
    @property
    def sandbox_id(self) -> str: ...

    def dispose(self) -> None: ...


_T = TypeVar("_T", bound=_Held)


def check_session_id(session_id: str) -> None:
    """Raise `ValidationError` if this cannot be a conversation's id."""
    if not isinstance(session_id, str) or not valid_session_id(session_id):
        raise ValidationError(
            "a session id has to be 1 to 256 letters, digits or any of . _ : -"
        )


def conversation_metadata(template_id: str, session_id: str | None) -> dict[str, str]:
    """Return what the sandboxes of a conversation carry; nothing if it has no id."""
    if session_id is None:
        return {}
    return {_SESSION: session_id, _TEMPLATE: template_id}


def session_id_of(metadata: Mapping[str, Json] | None) -> str | None:
    """Return the conversation that a sandbox was created for, if any."""
    found = (metadata or {}).get(_SESSION)
    return found if isinstance(found, str) and valid_session_id(found) else None


def in_order(found: Iterable[ListedSandbox]) -> list[ListedSandbox]:
    """Return the sandboxes of a conversation, the one that it is held in first."""
    return sorted(found, key=lambda s: (s.started_at, s.sandbox_id))


def settle(
    *,
    find: Callable[[], Iterable[str]],
    create: Callable[[], _T],
    attach: Callable[[str], _T],
) -> _T:
    """Return the session on the one sandbox of a conversation; kill a further own one.

    Args:
        find: Asks for the ids of its sandboxes, in order.
        create: Makes one and waits until its agent answers.
        attach: Takes that of another process and waits until its agent answers; raises
            `SessionNotFoundError` if it is gone.

    Raises:
        ConflictError: Others begin and end it all the time.
    """
    mine: _T | None = None
    theirs: _T | None = None
    settled: _T | None = None
    gone: set[str] = set()
    try:
        for _ in range(_ROUNDS):
            first = next((i for i in find() if i not in gone), None)
            ready = [s for s in (mine, theirs) if s is not None]
            settled = next((s for s in ready if s.sandbox_id == first), None)
            if first is None:
                # A list that does not show ours yet does not show a better one either.
                settled = mine
            if settled is not None:
                return settled
            if first is None:
                mine = create()
                continue
            try:
                theirs = attach(first)
            except SessionNotFoundError:
                gone.add(first)
        raise ConflictError(
            "other processes begin and end this conversation all the time; try again"
        )
    finally:
        if mine is not None and mine is not settled:
            mine.dispose()
