"""What a request to start an invocation asks for besides its payload. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from ppio_agent.agent.lifetime import Departure
from ppio_agent.exceptions import ValidationError
from ppio_agent.wire.headers import (
    Accept,
    list_items,
    valid_id,
    valid_idempotency_key,
    valid_session_id,
)

__all__ = ["Call", "departure_rule", "read_call"]

_DECIMAL = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")


@frozen(kw_only=True)
class Call:
    """The wishes of one request.

    Attributes:
        invocation_id: Id that the caller chose, or None.
        key: Idempotency key; the chosen id stands in for a missing one.
        timeout: Seconds it may take at most, or None.
        session_id: The conversation, or None.
        sandbox_id: The sandbox that the caller means to talk to, else this one.
        respond_async: Whether the answer is to come before the outcome.
    """

    invocation_id: str | None
    key: str | None
    timeout: float | None
    session_id: str | None
    sandbox_id: str | None
    respond_async: bool


def read_call(environ: Mapping[str, Any], payload: Any, *, home: str | None) -> Call:
    """Return what headers and body ask for.

    Args:
        environ: A WSGI environ; only its headers are looked at.
        payload: The decoded body.
        home: The sandbox this runs in, or None.

    Raises:
        ValidationError: An id, key or timeout is not of its form.
    """
    body = payload if isinstance(payload, dict) else {}
    sandbox_id = body.get("sandbox_id")
    if not isinstance(sandbox_id, str):
        sandbox_id = home
    get = environ.get
    invocation_id = get("HTTP_X_INVOCATION_ID")
    if invocation_id is not None and not valid_id(invocation_id):
        raise ValidationError(
            "X-Invocation-Id has to be 1 to 128 of A-Z a-z 0-9 . _ : -"
        )
    key = get("HTTP_IDEMPOTENCY_KEY")
    if key is not None and not valid_idempotency_key(key):
        raise ValidationError(
            "Idempotency-Key has to be 1 to 255 visible ASCII characters"
        )
    prefer = get("HTTP_PREFER")
    return Call(
        invocation_id=invocation_id,
        key=invocation_id if key is None else key,
        timeout=_timeout(get("HTTP_X_PPIO_TIMEOUT"), body.get("timeout")),
        session_id=_session(environ, body, sandbox_id),
        sandbox_id=sandbox_id,
        respond_async=prefer is not None and _prefers_async(prefer),
    )


def departure_rule(
    call: Call, accept: str | None, *, fixed: Departure | None
) -> Departure:
    """Return what becomes of a request's invocation when its last reader leaves.

    Args:
        call: What the request asks for.
        accept: Its `Accept` header.
        fixed: What the entrypoint says, or None.
    """
    if call.respond_async:
        return "async"
    if fixed is not None:
        return fixed
    if call.key is None:
        return "cancel"
    # Only with a key can a caller come back, and only full streams can be gone on with.
    return "detach" if Accept.parse(accept).names_sse else "cancel"


def _timeout(header: str | None, member: Any) -> float | None:
    wishes = []
    if header is not None:
        if not _DECIMAL.fullmatch(header):
            raise _bad_timeout("X-PPIO-Timeout")
        wishes.append(float(header))
    if member is not None:
        if isinstance(member, bool) or not isinstance(member, (int, float)):
            raise _bad_timeout("timeout")
        try:
            wishes.append(float(member))
        except OverflowError:  # an int of hundreds of digits
            raise _bad_timeout("timeout") from None
    if not wishes:
        return None
    timeout = min(wishes)
    if not 0 < timeout < float("inf"):
        raise _bad_timeout("the timeout")
    return timeout


def _bad_timeout(name: str) -> ValidationError:
    return ValidationError(f"{name} has to be a number of seconds above 0")


def _session(
    environ: Mapping[str, Any], body: Mapping[str, Any], sandbox_id: str | None
) -> str | None:
    session_id = environ.get("HTTP_X_PPIO_SESSION_ID")
    if session_id is None:
        session_id = environ.get("HTTP_X_AMZN_BEDROCK_AGENTCORE_RUNTIME_SESSION_ID")
    if session_id is None:
        session_id = body.get("session_id")
    if session_id is None:
        if sandbox_id is not None and valid_session_id(sandbox_id):
            return sandbox_id
        return None
    if not isinstance(session_id, str) or not valid_session_id(session_id):
        raise ValidationError("a session id has to be 1 to 256 of A-Z a-z 0-9 . _ : -")
    return session_id


def _prefers_async(prefer: str) -> bool:
    wishes = (item.partition(";")[0].strip(" \t") for item in list_items(prefer))
    return any(wish.lower() == "respond-async" for wish in wishes)
