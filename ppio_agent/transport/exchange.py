"""One request and its answer, on one connection."""

from __future__ import annotations

import ssl
from typing import Protocol

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import (
    NetworkError,
    PPIOAgentError,
    ProtocolError,
    RequestTimeoutError,
    ResponseTooLargeError,
)

from .calls import CallHandle
from .connect import Connection
from .content import Inflater, inflater_for
from .http1 import (
    BodyReader,
    FramingError,
    Head,
    SizedBody,
    TruncatedError,
    body_reader,
    find_head,
    parse_head,
)
from .retry import Failure
from .route import Origin, Proxy

__all__ = ["BrokenError", "Exchange", "connect_error"]

_PIECE_BYTES = 64 * 1024
# Header and body leave in one packet if they are small enough to be copied together.
_JOINED_BYTES = 64 * 1024

_MOST_INTERIM = 100

_TIMED_OUT = {
    "response": "the time ran out before an answer came",
    "body": "the time ran out inside the answer",
    "idle": "the peer was silent for {} s",
}


class BrokenError(Exception):
    """An attempt ended without a whole answer.

    Attributes:
        failure: How, for the table of retries.
        error: What the caller is told, if there is no other attempt.
    """

    def __init__(self, failure: Failure, error: PPIOAgentError) -> None:
        super().__init__(failure, error)
        self.failure = failure
        self.error = error


def connect_error(error: OSError, origin: Origin) -> BrokenError:
    """Return what a connection that could not be made means."""
    where = f"{origin.scheme}://{origin.authority}"
    if isinstance(error, TimeoutError):
        timeout = RequestTimeoutError(
            f"connecting to {where} took too long", phase="connect"
        )
        return BrokenError(Failure.CONNECT, timeout)
    if isinstance(error, ssl.SSLCertVerificationError):
        untrusted = NetworkError(
            f"the certificate of {where} is not trusted: {error.verify_message};"
            " set ca_bundle if an authority of your own signed it",
            retryable=False,
        )
        return BrokenError(Failure.FINAL, untrusted)
    why = error.strerror or str(error) or type(error).__name__
    refused = NetworkError(f"cannot connect to {where}: {why[:1].lower()}{why[1:]}")
    return BrokenError(Failure.CONNECT, refused)


class _Owner(Protocol):
    """Where the connection goes back to."""

    def release(self, connection: Connection | None, *, keep: bool) -> None:
        """Give it back."""


class Exchange:
    """Sends one request over a connection and reads its answer.

    Whoever makes one calls `release` at the end, in every case.

    Args:
        connection: Attached to `call`.
        owner: Gets the connection back.
        call: Can end it from outside.
        deadline: Bounds all of it.
        idle_timeout: Longest silence of the peer, in seconds; None means no limit.

    Attributes:
        head: Status and headers; set by `start`.
        reused: Whether the connection served others before.
        proxy: The proxy that the request is addressed to, if any.

    Thread safety: one thread at a time.
    """

    __slots__ = (
        "_body", "_call", "_connection", "_deadline", "_idle_timeout", "_inflater",
        "_keep", "_owner", "_rest", "_why", "head", "proxy", "reused",
    )  # fmt: skip

    head: Head

    def __init__(
        self,
        connection: Connection,
        owner: _Owner,
        call: CallHandle,
        deadline: Deadline,
        idle_timeout: float | None,
    ) -> None:
        self._connection: Connection | None = connection
        self._owner = owner
        self._call = call
        self._deadline = deadline
        self._idle_timeout = idle_timeout
        self._keep = False
        self._rest = b""
        self._why: Exception | None = None  # the connection broke
        self._body: BodyReader = SizedBody(0)
        self._inflater: Inflater | None = None
        self.proxy: Proxy | None = connection.proxy
        self.reused = connection.served > 0
        connection.served += 1

    def start(self, method: str, head: bytes, body: bytes | None) -> None:
        """Send a request and read the head of its answer.

        Raises:
            BrokenError: There is none.
            PPIOAgentError: What the call was aborted with.
        """
        sent = self._send(head, body)
        try:
            self.head = self._read_head()
            self._body = body_reader(method, self.head)
            coding = self.head.headers.get("content-encoding")
            if coding is not None and not self._body.done:
                self._inflater = inflater_for(coding)
        except FramingError as error:
            raise _malformed(error) from error
        self._keep = sent and self.head.keeps_alive

    def _send(self, head: bytes, body: bytes | None) -> bool:
        """Return whether all was sent."""
        connection = self._in_use()
        try:
            if body and len(body) <= _JOINED_BYTES:
                connection.send(head + body, self._deadline)
            else:
                connection.send(head, self._deadline)
                if body:
                    connection.send(body, self._deadline)
        except TimeoutError as error:
            raise self._timed_out("response") from error
        except OSError as error:
            # A peer may answer and close before it has read all, say with 413: so the
            # answer is read in any case.
            self._broke(error)
            return False
        return True

    def _read_head(self) -> Head:
        seen = bytearray()
        searched = 0
        interim = 0
        while True:
            end = find_head(seen, searched)
            if end >= 0:
                head = parse_head(seen[:end])
                del seen[:end]
                searched = 0
                if head.status < 200 and head.status != 101:
                    interim += 1  # the real answer follows
                    if interim > _MOST_INTERIM:
                        raise FramingError("there is no end of interim answers")
                    continue
                self._rest = bytes(seen)
                self._why = None
                return head
            searched = len(seen)
            data = self._receive("response")
            if not data:
                why = self._why or EOFError("the peer closed the connection")
                raise _no_answer(started=bool(seen)) from why
            seen += data

    def _receive(self, phase: str) -> bytes:
        """Return what comes next; nothing at the end, and then `_why` if it broke."""
        idle = self._idle_timeout
        left = self._deadline.left()
        if idle is None or (left is not None and left <= idle):
            timeout = left
        else:
            timeout, phase = idle, "idle"
        try:
            data = self._in_use().receive(timeout)
        except TimeoutError as error:
            raise self._timed_out(phase) from error
        except (OSError, ValueError) as error:
            # ValueError: TLS that was closed under the reader.
            self._broke(error)
            return b""
        # After an abort the end of the connection looks like the end of the answer.
        self._call.check()
        return data

    def _broke(self, error: Exception) -> None:
        self._call.check()
        self._keep = False
        self._why = error

    def _timed_out(self, phase: str) -> BrokenError:
        self._call.check()
        message = _TIMED_OUT[phase].format(self._idle_timeout)
        return BrokenError(Failure.FINAL, RequestTimeoutError(message, phase=phase))

    def read(self) -> bytes:
        """Return the next piece of the body, decompressed; nothing at its end.

        The connection is given back at the end.

        Raises:
            BrokenError: The answer is cut or malformed.
            PPIOAgentError: What the call was aborted with.
        """
        try:
            while True:
                piece = self._read_some()
                if piece:
                    return piece
                if self._body.done and not self._pending:
                    break
            if self._inflater is not None:
                self._inflater.end()
        except TruncatedError as error:
            raise _cut(error) from error
        except FramingError as error:
            self._keep = False
            raise _malformed(error) from error
        self._call.check()
        self.release()
        return b""

    @property
    def _pending(self) -> bool:
        return self._inflater is not None and self._inflater.pending

    def _read_some(self) -> bytes:
        inflater = self._inflater
        if inflater is not None and inflater.pending:
            # No socket tells of the time here, and little that was sent can be much.
            self._call.check()
            if self._deadline.expired:
                raise self._timed_out("body")
            return inflater.feed(b"", _PIECE_BYTES)
        if self._body.done:
            return b""
        data, self._rest = self._rest, b""
        if not data:
            data = self._receive("body")
            if not data:
                self._keep = False
                if self._why is not None:
                    raise _cut(self._why) from self._why
                self._body.end()
                return b""
        piece = self._body.feed(data)
        if inflater is not None and piece:
            return inflater.feed(piece, _PIECE_BYTES)
        return piece

    def read_all(self, limit: int) -> bytes:
        """Return the whole body.

        Raises:
            ResponseTooLargeError: It has more than `limit` bytes.
        """
        first = self.read()
        if not first:
            return b""
        pieces = [first]
        size = len(first)
        while size <= limit:
            piece = self.read()
            if not piece:
                return first if len(pieces) == 1 else b"".join(pieces)
            pieces.append(piece)
            size += len(piece)
        self._keep = False
        raise ResponseTooLargeError(
            f"the answer is larger than {limit} bytes; raise max_response_bytes, or"
            " ask for less"
        )

    def release(self) -> None:
        """Give the connection back; closed, unless the answer was read to its end.

        Idempotent.
        """
        connection, self._connection = self._connection, None
        if connection is None:
            return
        self._call.detach()
        keep = (
            self._keep
            and self._call.error is None
            and self._body.done
            and not self._body.excess
            and not self._rest
        )
        self._owner.release(connection, keep=keep)

    def _in_use(self) -> Connection:
        if self._connection is None:
            raise OSError("the connection was given back")
        return self._connection


def _malformed(error: FramingError) -> BrokenError:
    return BrokenError(Failure.FINAL, ProtocolError(str(error)))


def _cut(why: Exception) -> BrokenError:
    error = NetworkError(f"the connection broke inside the answer: {why}")
    return BrokenError(Failure.CUT, error)


def _no_answer(*, started: bool) -> BrokenError:
    if started:
        cut = NetworkError("the connection ended inside the head of the answer")
        return BrokenError(Failure.CUT, cut)
    silent = NetworkError("the peer closed the connection without an answer")
    return BrokenError(Failure.NO_ANSWER, silent)
