"""What a run asks for besides its messages: conversation, id, patience. Pure."""

from __future__ import annotations

import hashlib
import re
import secrets

from attrs import frozen

from ppio_agent.actors._types import ANONYMOUS
from ppio_agent.exceptions import ValidationError
from ppio_agent.wire.actors import MAX_SECONDS
from ppio_agent.wire.headers import list_items, valid_idempotency_key

__all__ = [
    "LONGEST_WAIT",
    "Patience",
    "deadline_of",
    "keyed_conversation",
    "message_id_of",
    "new_conversation",
    "valid_message_id",
]

LONGEST_WAIT = 300.0
"""Most seconds for which a request is held to wait for an outcome."""

_MESSAGE_ID = re.compile(r"[A-Za-z0-9._\-]{1,128}")
_DECIMAL = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,15})?")
_WAIT = re.compile(r"wait\s*=\s*([0-9]{1,9})", re.IGNORECASE)
# Shorter keys of strangers collide.
_SHORTEST_KEY = 16


def valid_message_id(text: str) -> bool:
    """Whether `text` may be the id of a request."""
    return _MESSAGE_ID.fullmatch(text) is not None


def message_id_of(key: str) -> str:
    """Return the id of the request that an idempotency key stands for.

    Raises:
        ValidationError: It is no such key.

    Example:
        >>> message_id_of("order-17"), message_id_of("order/17")
        ('order-17', 'k-ba125075dcddef7ae87e8bdf937ab121')
    """
    if not valid_idempotency_key(key):
        raise ValidationError(
            "Idempotency-Key has to be 1 to 255 visible ASCII characters",
            code="invalid_request",
        )
    return key if valid_message_id(key) else f"k-{_digest(key)}"


def deadline_of(timeout: str | None) -> float | None:
    """Return within how many seconds a request has to end (`X-PPIO-Timeout`).

    Raises:
        ValidationError: It is no such number.

    Example:
        >>> deadline_of("2.5")
        2.5
    """
    if timeout is None:
        return None
    if _DECIMAL.fullmatch(timeout) and 0.0 < float(timeout) <= MAX_SECONDS:
        return float(timeout)
    raise ValidationError(
        "X-PPIO-Timeout has to be a number of seconds above 0, at most"
        f" {MAX_SECONDS:.0f}",
        code="invalid_request",
    )


def new_conversation() -> str:
    """Return the id of a conversation that nobody can guess."""
    return f"{ANONYMOUS}{secrets.token_hex(16)}"


def keyed_conversation(key: str, agent: str, principal: str | None) -> str:
    """Return the conversation that a key without one begins, the same each time.

    Args:
        key: The idempotency key.
        agent: Name of the agent.
        principal: Who asks; None: that is not known.

    Raises:
        ValidationError: Nobody is known, and the key is one that others may choose.
    """
    if principal is None and len(key) < _SHORTEST_KEY:
        raise ValidationError(
            f"an Idempotency-Key without conversation_id has to have {_SHORTEST_KEY}"
            " characters at least, since strangers' keys collide",
            code="idempotency_key_too_short",
        )
    # Lengths in front, so that no two triples are one text.
    parts = [principal or "", agent, key]
    return f"{ANONYMOUS}{_digest(''.join(f'{len(part)}:{part}' for part in parts))}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@frozen
class Patience:
    """For how long a caller waits for the outcome itself.

    Attributes:
        seconds: So long, then a 202; None: as long as it takes.
    """

    seconds: float | None = None

    @classmethod
    def of(cls, prefer: str | None) -> Patience:
        """Return what a `Prefer` header says (RFC 7240).

        Example:
            >>> Patience.of("respond-async"), Patience.of("respond-async, wait=5")
            (Patience(seconds=0.0), Patience(seconds=5.0))
        """
        if prefer is None:
            return cls()
        asynchronous, seconds = False, None
        for item in list_items(prefer):
            wish = item.partition(";")[0].strip(" \t")
            found = _WAIT.fullmatch(wish)
            if found is not None and seconds is None:
                seconds = min(float(found[1]), LONGEST_WAIT)
            asynchronous = asynchronous or wish.lower() == "respond-async"
        if seconds is None and asynchronous:
            seconds = 0.0
        return cls(seconds)
