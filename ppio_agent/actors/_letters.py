"""Dead letters: requests that could not be done, and may be sent again."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from ppio_agent.exceptions import NotFoundError
from ppio_agent.storage.actors.records import RequestRecord

from ._send import send

if TYPE_CHECKING:
    from ._call import Call
    from ._engine import Engine

__all__ = ["redrive"]


def redrive(engine: Engine, id: str) -> Call:
    """Send the request of a dead letter again, under a new id, and remove the letter.

    The id is made of the letter's, so that it is sent once, whoever asks how often.

    Raises:
        NotFoundError: There is no such letter.
        PPIOAgentError: The request is refused; the letter stays.
    """
    letter = engine.store.dead_letter(id)
    if letter is None:
        raise NotFoundError(
            f"there is no dead letter {id!r:.120}", code="dead_letter_not_found"
        )
    old = letter.request
    new = sha256(f"{old.actor_id}\n{old.message_id}\n{letter.id}".encode())
    request = RequestRecord(
        old.actor_id,
        f"l-{new.hexdigest()[:32]}",
        old.method,
        old.params,
        traceparent=old.traceparent,
    )
    call = send(engine, request)
    engine.store.discard(id)
    return call
