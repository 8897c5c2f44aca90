"""One invocation on its way, before and while it has connections."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import (
    ClientClosedError,
    NetworkError,
    RequestTimeoutError,
    SessionClosedError,
    ValidationError,
)
from ppio_agent.transport import CallHandle, Headers
from ppio_agent.transport.http1 import FramingError, encode_head
from ppio_agent.wire import headers as h

__all__ = ["Call", "Line", "name_call"]


@frozen(eq=False, kw_only=True)
class Line:
    """What an invocation has for itself, over as many connections as it takes.

    Attributes:
        invocation_id: Id of the run; one that a call has chosen is known before the
            answer, and that of an earlier run with the same key wins.
        deadline: Bounds all of it.
        handle: By which other threads end it.
    """

    invocation_id: str
    deadline: Deadline
    handle: CallHandle = field(factory=CallHandle, repr=False)


@frozen(eq=False, kw_only=True)
class Call(Line):
    """One invocation on its way.

    Attributes:
        body: What the agent is sent.
        idempotency_key: Under which it runs once, however often it is sent.
        headers: Of the caller's own.
    """

    body: bytes
    idempotency_key: str
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def make(
        cls,
        body: bytes,
        *,
        deadline: Deadline,
        idempotency_key: str | None,
        headers: Mapping[str, str] | None,
    ) -> Call:
        """Return the call; a key is made up if there is none.

        Raises:
            ValidationError: The key, or an invocation id among the headers, is none;
                or a header cannot be sent.
        """
        fresh_id = new_id()
        chosen_id = _chosen_id(headers) if headers else None
        if idempotency_key is None:
            idempotency_key = fresh_id
        elif not h.valid_idempotency_key(idempotency_key):
            raise ValidationError(
                "an idempotency key has to be 1 to 255 visible ASCII characters"
            )
        return cls(
            body=body,
            deadline=deadline,
            idempotency_key=idempotency_key,
            invocation_id=chosen_id or f"inv_{fresh_id}",
            headers=dict(headers or {}),
        )

    def was_given_up(self, error: BaseException) -> bool:
        """Whether `error` is that the caller, and nobody else, wants no answer."""
        if not isinstance(error, Exception):
            return True  # Ctrl-C, and the like
        end = self.handle.error
        lost = isinstance(end, (ClientClosedError, SessionClosedError))
        return end is not None and not lost


def name_call(error: NetworkError, *, key: str | None, sandbox_id: str | None) -> None:
    """Write into an error of the connection which call it ended, once."""
    if key is None or error.idempotency_key is not None:
        return
    error.idempotency_key = key
    if isinstance(error, RequestTimeoutError):
        error.message += f"; the sandbox is {sandbox_id}, the idempotency key {key}"
        error.args = (error.message,)


def _chosen_id(headers: Mapping[str, str]) -> str | None:
    """Return the invocation id that headers choose; raise if one cannot be sent."""
    for name, value in headers.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValidationError(f"the header {name!r} has to be a text, as its name")
    try:
        encode_head("POST", "/", headers.items())
    except FramingError as error:
        raise ValidationError(f"the request cannot be sent: {error}") from error
    found = Headers(headers.items())
    if h.IDEMPOTENCY_KEY in found:
        raise ValidationError(
            f"the header {h.IDEMPOTENCY_KEY} is not taken; pass idempotency_key=…"
        )
    chosen_id = found.get(h.INVOCATION_ID)
    if chosen_id is not None and not h.valid_id(chosen_id):
        raise ValidationError(
            f"{h.INVOCATION_ID} has to be 1 to 128 of A-Z a-z 0-9 . _ : -"
        )
    return chosen_id
