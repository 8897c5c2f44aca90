"""``/dead-letters``: requests that could not be done, for a person to look at."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from ppio_agent.exceptions import NotFoundError, PermissionDeniedError
from ppio_agent.storage.actors.records import DeadLetter
from ppio_agent.web import Reply, json_reply
from ppio_agent.web.exchange import Exchange
from ppio_agent.wire.actor_bodies import DeadLetterBody, PendingBody
from ppio_agent.wire.actors import RequestStatus

from .api import Api
from .errors import invalid
from .requests import instant
from .runs import promise_headers

__all__ = ["discard", "letters", "redrive"]

_MOST = 1000


def letters(api: Api, exchange: Exchange) -> Reply:
    """Answer the dead letters, the oldest first."""
    _admit(api, exchange)
    text = exchange.query("limit") or "100"
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= _MOST):
        raise invalid(["query", "limit"], f"expected a number from 1 to {_MOST}")
    limit = int(text)
    found = islice(_visible(api, exchange, limit, exchange.query("after")), limit)
    return json_reply(200, [_body_of(letter).to_dict() for letter in found])


def _visible(
    api: Api, exchange: Exchange, page: int, after: str | None
) -> Iterator[DeadLetter]:
    """Yield the letters that the caller may see, from behind one on."""
    while found := api.runtime.dead_letters(page, after):
        for letter in found:
            if api.is_visible(exchange, letter.request.actor_id):
                yield letter
        after = found[-1].id


def redrive(api: Api, exchange: Exchange, id: str) -> Reply:
    """Send the request of a dead letter again, under a new id."""
    _admit(api, exchange)
    _check(api, exchange, id)
    handle = api.runtime.redrive(id)
    body = PendingBody(
        status=RequestStatus.PENDING,
        conversation_id=handle.actor_id.instance_id,
        message_id=handle.message_id,
    )
    return json_reply(202, body.to_dict(), promise_headers(exchange, handle))


def discard(api: Api, exchange: Exchange, id: str) -> Reply:
    """Remove a dead letter.

    Raises:
        NotFoundError: There is none of this id.
    """
    _admit(api, exchange)
    _check(api, exchange, id)
    api.runtime.discard(id)
    return Reply(204)


def _admit(api: Api, exchange: Exchange) -> None:
    """Refuse strangers: without authentication letters are those of all callers."""
    if exchange.principal is None and not api.front.local_only:
        raise PermissionDeniedError(
            "dead letters are shown to authenticated callers only: set up auth=…"
        )


def _check(api: Api, exchange: Exchange, id: str) -> None:
    """Return if there is such a letter, of an actor that the caller owns."""
    letter = api.store.dead_letter(id)
    if letter is None or not api.is_visible(exchange, letter.request.actor_id):
        raise NotFoundError(
            f"there is no dead letter {id[:100]}", code="dead_letter_not_found"
        )


def _body_of(letter: DeadLetter) -> DeadLetterBody:
    request = letter.request
    return DeadLetterBody(
        id=letter.id,
        actor_id=str(request.actor_id),
        message_id=request.message_id,
        method=request.method,
        reason=letter.reason,
        at=instant(letter.at),
        attempts=letter.attempts,
    )
