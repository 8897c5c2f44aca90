"""An answer that is read piece by piece, and may be closed from any thread."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import evolve

from ppio_agent._util.closing import Closing
from ppio_agent.exceptions import PPIOAgentError, StreamClosedError

from .attempts import Body
from .calls import CallHandle
from .exchange import BrokenError
from .http1 import Headers
from .messages import Response

if TYPE_CHECKING:
    pass

__all__ = ["RawStream"]

Describe = Callable[[PPIOAgentError], PPIOAgentError]


class RawStream(Closing):
    """The body of an answer whose head has been read.

    Read it to its end or close it; an abandoned one closes itself with a
    `ResourceWarning`.

    Attributes:
        status: HTTP status.
        headers: Headers of the answer.
        request_id: As the peer named it, else as it was sent.
        url: What was asked.
        attempts: How many attempts it took.

    Thread safety: one reader; `close` from any thread, and from a signal handler.
    """

    def __init__(
        self,
        body: Body,
        call: CallHandle,
        answer: Response,
        *,
        limit: int,
        describe: Describe,
        leave: Callable[[CallHandle], None],
    ) -> None:
        self.status: int = answer.status
        self.headers: Headers = answer.headers
        self.request_id: str = answer.request_id
        self.url: str = answer.url
        self.attempts: int = answer.attempts
        self._answer = answer
        self._limit = limit
        self._describe = describe
        self._state = _State(body, call, leave)
        self._body = body
        self._abandoned = weakref.finalize(
            self, _abandon, self._state, answer.request_id
        )
        self._abandoned.atexit = False

    def read(self) -> bytes:
        """Return the next piece, decompressed; nothing at the clean end.

        Raises:
            StreamClosedError: The stream was closed here, before or meanwhile.
            RequestTimeoutError: The peer fell silent, or the deadline passed.
            NetworkError: The answer was cut.
            ProtocolError: It is malformed.
        """
        return self._take(self._body.read)

    def response(self, limit: int | None = None) -> Response:
        """Read what is left and return the whole as a `Response`.

        Args:
            limit: Most bytes; None takes the transport's `max_response_bytes`.

        Raises:
            ResponseTooLargeError: There is more; the stream is closed.
            NetworkError: As `read`, and so on.
        """
        most = self._limit if limit is None else limit
        whole = self._take(lambda: self._body.read_all(most), last=True)
        return evolve(self._answer, body=whole)

    def _take(self, read: Callable[[], bytes], *, last: bool = False) -> bytes:
        try:
            piece = self._state.take(read, last=last)
        except BrokenError as broken:
            self._abandoned.detach()
            raise self._describe(broken.error) from broken.__cause__
        except PPIOAgentError as error:
            self._abandoned.detach()
            self._describe(error)
            raise
        if last or not piece:
            self._abandoned.detach()
        return piece

    def close(self) -> None:
        """End the stream; a reader wakes at once with `StreamClosedError`. Idempotent."""
        self._abandoned.detach()
        self._state.close(StreamClosedError("the stream was closed"))

    @property
    def closed(self) -> bool:
        """Whether nothing can be read any more."""
        return self._state.ended

    def __repr__(self) -> str:
        return f"<RawStream {self.status} {'closed' if self.closed else 'open'}>"


class _State:
    """What a stream holds, apart from it: it has to be let go of when that is gone."""

    __slots__ = ("_body", "_call", "_closed", "_leave", "_lock", "_reading", "ended")

    def __init__(
        self,
        body: Body,
        call: CallHandle,
        leave: Callable[[CallHandle], None],
    ) -> None:
        # Guards the three flags. Re-entrant, since a signal handler that closes runs on
        # top of whatever the reader was doing.
        self._lock = threading.RLock()
        self._reading = False
        self._closed = False
        self.ended = False
        self._body = body
        self._call = call
        self._leave = leave

    def take(self, read: Callable[[], bytes], *, last: bool) -> bytes:
        with self._lock:
            if self._reading:
                raise RuntimeError("a stream has one reader at a time")
            self._reading = True
        over = True
        try:
            self._call.check()
            piece = read()
            over = last or not piece
            return piece
        finally:
            with self._lock:
                self._reading = False
                over = over or self._closed
            if over:
                self._let_go()

    def close(self, error: PPIOAgentError) -> None:
        if self.ended:
            return
        self._call.abort(error)
        with self._lock:
            self._closed = True
            reading = self._reading
        # A reader lets go itself once it has woken: the socket is still its own.
        if not reading:
            self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = True
        self._body.release()
        self._leave(self._call)


def _abandon(state: _State, request_id: str) -> None:
    state.close(StreamClosedError("the stream was abandoned"))
    warnings.warn(
        f"the stream of request {request_id} was neither read to its end nor closed",
        ResourceWarning,
        stacklevel=2,
    )
