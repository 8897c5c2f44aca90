"""An answer that is read piece by piece, and may be closed from any thread."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence

from attrs import evolve

from ppio_agent._util.clock import Deadline
from ppio_agent._util.closing import Closing
from ppio_agent.exceptions import (
    ConfigurationError,
    PPIOAgentError,
    RequestTimeoutError,
    ResponseTooLargeError,
    StreamClosedError,
)

from .attempts import Body
from .calls import CallHandle
from .exchange import BrokenError
from .http1 import Headers
from .messages import Response

__all__ = ["RawStream"]

Describe = Callable[[PPIOAgentError], PPIOAgentError]

_MIB = 1024 * 1024


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
        head: The answer without its body.

    Thread safety: one reader; `close` from any thread, and from a signal handler. In a
    forked child it is closed, and the parent reads on.
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
        self.head: Response = answer
        self._limit = limit
        self._describe = describe
        self._state = _State(body, call, leave)
        self._body = body
        self._abandoned = weakref.finalize(
            self, _abandon, self._state, answer.request_id
        )
        self._abandoned.atexit = False

    @classmethod
    def of(cls, answer: Response, pieces: Iterable[bytes] | None = None) -> RawStream:
        """Return a stream for a middleware that gives one itself.

        Args:
            answer: Its status and headers: the `head` of another stream, say.
            pieces: Its body, in the form in which it is read; an iterator that has a
                `close`, as generators have, is closed with the stream. None takes the
                body of `answer`.
        """
        parts = (answer.body,) if pieces is None else pieces
        return cls(
            _Pieces(parts),
            CallHandle(),
            evolve(answer, body=b""),
            limit=64 * _MIB,
            describe=lambda error: error,
            leave=lambda _: None,
        )

    def adopt(
        self,
        call: CallHandle,
        *,
        limit: int,
        leave: Callable[[CallHandle], None],
        others: Sequence[RawStream],
    ) -> None:
        """Become what a call gives to its caller.

        Args:
            call: Ends this stream from now on.
            limit: As for the streams of the transport.
            leave: Called when this stream has ended.
            others: Further streams of the call: this one may be made of them, so they
                end with it.
        """
        self._limit = limit
        self._state.adopt(call, leave, others)

    def bound(self, deadline: Deadline) -> None:
        """Let nothing count that comes later, whoever made the stream.

        The transport's own end in time; what a plug-in makes cannot be interrupted.
        """
        self._state.deadline = deadline

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
        return evolve(self.head, body=whole)

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
        except BaseException:
            self._abandoned.detach()
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


class _Pieces:
    """The body of a stream that a middleware made."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)

    def read(self) -> bytes:
        for piece in self._pieces:
            if not isinstance(piece, bytes):
                raise ConfigurationError(
                    "a stream that a middleware makes is of bytes, not of"
                    f" {type(piece).__name__}"
                )
            if piece:
                return piece
        return b""

    def read_all(self, limit: int) -> bytes:
        whole = bytearray()
        while piece := self.read():
            whole += piece
            if len(whole) > limit:
                raise ResponseTooLargeError(
                    f"the answer is larger than {limit} bytes; raise"
                    " max_response_bytes, or ask for less"
                )
        return bytes(whole)

    def release(self) -> None:
        close = getattr(self._pieces, "close", None)
        if close is not None:
            close()


class _State:
    """What a stream holds, apart from it: it has to be let go of when that is gone."""

    __slots__ = (
        "_body", "_call", "_closed", "_leave", "_lock", "_others", "_reading",
        "deadline", "ended",
    )  # fmt: skip

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
        self._closed: PPIOAgentError | None = None
        self.ended = False
        self._body = body
        self._call = call
        self._leave = leave
        self._others: Sequence[RawStream] = ()
        self.deadline: Deadline | None = None  # of what a plug-in had a hand in

    def adopt(
        self,
        call: CallHandle,
        leave: Callable[[CallHandle], None],
        others: Sequence[RawStream],
    ) -> None:
        with self._lock:
            self._call, self._leave, self._others = call, leave, others
            ended = self.ended
        if ended:  # read to its end before it was handed on
            self._leave_call()

    def _forget_reader(self) -> None:
        """Begin anew in a forked child: the parent's reader is not there."""
        self._lock = threading.RLock()
        self._reading = False

    def take(self, read: Callable[[], bytes], *, last: bool) -> bytes:
        if self._call.inherited:
            self._forget_reader()
        with self._lock:
            if self._reading:
                raise RuntimeError("a stream has one reader at a time")
            if self._closed is not None:
                raise self._closed
            self._reading = True
        over = True
        try:
            self._call.check()
            piece = read()
            if self.deadline is not None and self.deadline.expired:
                raise RequestTimeoutError(
                    "the time ran out inside the answer", phase="body"
                )
            over = last or not piece
            return piece
        finally:
            with self._lock:
                self._reading = False
                over = over or self._closed is not None
            if over:
                self._let_go()

    def close(self, error: PPIOAgentError) -> None:
        if self.ended:
            return
        if self._call.inherited:
            self._forget_reader()
        with self._lock:
            self._closed = self._closed or error
            reading = self._reading
        # A reader lets go itself once it has woken: the socket is still its own. The
        # call is not ended otherwise, since a middleware may go on with it.
        if reading:
            self._call.abort(error)
        else:
            self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended = True
        try:
            self._body.release()
        finally:
            self._leave_call()

    def _leave_call(self) -> None:
        for other in self._others:
            other.close()
        self._leave(self._call)


def _abandon(state: _State, request_id: str) -> None:
    state.close(StreamClosedError("the stream was abandoned"))
    warnings.warn(
        f"the stream of request {request_id} was neither read to its end nor closed",
        ResourceWarning,
        stacklevel=2,
    )
