"""Event streams of the control plane: how many there are, and how each ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from attrs import frozen
from flask import Response, request

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import ServiceUnavailableError, ValidationError
from ppio_agent.sandbox.seats import Seats
from ppio_agent.web import SSE_HEADERS, sse_body
from ppio_agent.wire.headers import LAST_EVENT_ID
from ppio_agent.wire.json import Json, encode_json

__all__ = ["Feed", "Note", "Streams", "last_event_id"]

_MOST: Final = 64
_MOST_OF_ONE: Final = 32
_HINT: Final = 5.0
_LOOK_EVERY: Final = 0.25
_MOST_DIGITS: Final = 18


@frozen(kw_only=True)
class Note:
    """One event of a stream; see `ppio_agent.web.sse.Entry`."""

    seq: int
    data: bytes
    event: str | None = None
    kind: str = "chunk"
    retry_ms: int | None = None

    @classmethod
    def of(cls, seq: int, event: str, value: Json) -> Note:
        """Return an event with a JSON value."""
        return cls(seq=seq, event=event, data=encode_json(value))

    @classmethod
    def end(cls, seq: int, value: Json, kind: str = "end") -> Note:
        """Return the last event of a stream, or the error that comes before it."""
        return cls(seq=seq, kind=kind, data=encode_json(value))


class Feed(Protocol):
    """Where the events of one stream come from."""

    def read(self, after: int, timeout: float | None) -> Sequence[Note]:
        """Return what comes after number `after`, waiting up to `timeout` for it.

        The event of kind `end` is the last.
        """

    def close(self) -> None:
        """Nobody reads on. Idempotent."""


class Streams:
    """The open streams: bounded in number, and told when the platform stops.

    Args:
        most: Streams at once; each has a thread of the server's.
        most_of_one: Those of one tenant.

    Thread safety: thread-safe.
    """

    def __init__(self, *, most: int = _MOST, most_of_one: int = _MOST_OF_ONE) -> None:
        self._seats = Seats(
            "streams",
            most=most,
            most_of_one=most_of_one,
            hint=_HINT,
            cure="close one first",
        )
        self._stopping = threading.Event()

    def respond(self, tenant: str, feed: Callable[[], Feed], *, after: int) -> Response:
        """Return the answer to the present request that is a stream.

        Args:
            tenant: Whose it is.
            feed: Makes its events.
            after: Number of the last event that the client has.

        Raises:
            RateLimitError: The tenant has as many streams as it may have.
            ServerBusyError: There are as many as there may be.
            ServiceUnavailableError: The platform is stopping.
        """
        if self._stopping.is_set():
            raise ServiceUnavailableError("the platform is stopping")
        self._seats.take(tenant)
        try:
            stream = _Stream(feed(), self._stopping)
        except BaseException:
            self._seats.leave(tenant)
            raise
        body = sse_body(
            stream,
            dialect="full",
            after=after,
            client_gone=request.environ.get("ppio.client_gone"),
        )
        response = Response(body, headers=list(SSE_HEADERS))

        def over() -> None:
            stream.close()
            self._seats.leave(tenant)

        response.call_on_close(over)
        return response

    @property
    def count(self) -> int:
        """How many are open."""
        return self._seats.count

    def close(self, timeout: float = 2.0) -> None:
        """End every stream with an error event, and refuse new ones. Idempotent.

        Blocking: until their ends are written, at most `timeout` seconds.
        """
        self._stopping.set()
        self._seats.wait_empty(timeout)


class _Stream:
    """A feed as `sse_body` wants it, which the end of the platform ends."""

    def __init__(self, feed: Feed, stopping: threading.Event) -> None:
        self._feed = feed
        self._stopping = stopping
        self.closed = False

    def read(self, after: int, timeout: float | None) -> Sequence[Note]:
        deadline = Deadline.after(timeout)
        while not self._stopping.is_set():
            notes = self._feed.read(after, deadline.bound(_LOOK_EVERY))
            if notes or deadline.expired:
                return notes
        self.closed = True
        facts = {
            "code": 503,
            "message": "the platform is stopping",
            "retryable": True,
        }
        # They carry the number of the last event: a client that comes back with it
        # to the next platform misses nothing.
        return [
            Note.end(after, facts, "error"),
            Note.end(after, {"reason": "shutdown"}),
        ]

    def close(self) -> None:
        self._feed.close()


def last_event_id() -> int | None:
    """Return the number of the last event that the client has seen.

    Raises:
        ValidationError: The header is no number that was sent.
    """
    text = request.headers.get(LAST_EVENT_ID)
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise ValidationError(f"{LAST_EVENT_ID}: expected the id of an event")
    return int(text)
