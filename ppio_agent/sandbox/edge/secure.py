"""TLS at the edge: a socket that a `Peer` uses as any other, and the handshake before.

There is no second buffer and no relay: OpenSSL sits between the socket and the peer,
so that back-pressure, ends and limits are those of a plain connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Any

__all__ = ["SecureSocket", "handshake"]

_WAITS = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


class SecureSocket(ssl.SSLSocket):
    """The server's end of a TLS connection, which never waits.

    Where the base class asks for more bytes or for room, this raises `BlockingIOError`
    as a plain socket does. A read takes a whole record of TLS if it has room for one,
    so that nothing is left inside that a selector would not see.

    Attributes:
        garbled: Whether what is received makes no sense any more; see `shutdown`.
    """

    garbled = False

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Receive; see `socket.recv`."""
        try:
            return super().recv(buflen, flags)
        except _WAITS:
            raise BlockingIOError from None

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:
        """Receive into a buffer; see `socket.recv_into`."""
        try:
            return super().recv_into(buffer, nbytes, flags)
        except _WAITS:
            raise BlockingIOError from None

    def send(self, data: Any, flags: int = 0) -> int:
        """Send; see `socket.send`. What it refused must be tried again, unchanged."""
        try:
            return super().send(data, flags)
        except _WAITS:
            raise BlockingIOError from None

    def shutdown(self, how: int) -> None:
        """End the sending side, saying so in TLS; what comes can still be read.

        As of any socket, it may be ended twice. But it is not said while something is unread: OpenSSL looks for the other
        side's end at once, and takes anything else for a fault. Should something come
        at that very moment, only that it comes and ends can be told from then on.
        """
        if not self._has_unread():
            try:
                self.unwrap()
            except _WAITS:
                pass  # for the other side's end
            except ValueError:
                pass  # both have said it before
            except OSError:
                self.garbled = True
                super().shutdown(how)
                return
        socket.socket.shutdown(self, how)

    def _has_unread(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(socket.socket.recv(self, 1, socket.MSG_PEEK))
        return False


async def handshake(
    sock: socket.socket, context: ssl.SSLContext, *, timeout: float
) -> ssl.SSLSocket:
    """Return the socket once its client agreed on TLS.

    Args:
        sock: Connected; closed if this fails.
        context: Makes `SecureSocket`s.
        timeout: Seconds that it may take.

    Raises:
        OSError: The client left, took too long or speaks something else.
    """
    sock.settimeout(0)
    try:
        # First, since a failure inside would leave the descriptor to the collector.
        sock.getpeername()
        secure = context.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False
        )
    except (OSError, ValueError) as exc:  # it is gone already
        sock.close()
        raise ConnectionAbortedError("gone before the handshake") from exc
    try:
        await asyncio.wait_for(_shake(secure), timeout)
    except asyncio.TimeoutError as exc:
        secure.close()
        raise ConnectionAbortedError("the handshake took too long") from exc
    except BaseException:
        secure.close()
        raise
    return secure


async def _shake(secure: ssl.SSLSocket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            secure.do_handshake()
        except ssl.SSLWantReadError:
            watch, unwatch = loop.add_reader, loop.remove_reader
        except ssl.SSLWantWriteError:
            watch, unwatch = loop.add_writer, loop.remove_writer
        else:
            return
        ready = asyncio.Event()
        watch(secure, ready.set)
        try:
            await ready.wait()
        finally:
            unwatch(secure)
