"""How the server is sized. A value; nothing here opens a socket."""

from __future__ import annotations

import resource
from collections.abc import Callable
from typing import Any

from attrs import field, frozen
from attrs.validators import ge, gt

from .kit import Reply, problem

__all__ = ["ServerConfig"]

_MIB = 1 << 20
# Descriptors left for listeners, logs, databases and outgoing calls of the app.
_SPARE_DESCRIPTORS = 64


@frozen(kw_only=True)
class ServerConfig:
    """Limits of one `Server`.

    Args:
        max_concurrency: Threads of the invoke lane, and of the read lane, at most.
        max_queue: Requests that may wait for a thread of such a lane.
        max_request_size: Largest body the application means to accept, in bytes. The
            server itself stops reading at four times that (16 MiB at least); the
            exact count is `kit.read_body`'s.
        write_timeout: Seconds a reader may take nothing of a full buffer before its
            connection is closed.
        request_timeout: Seconds in which a request has to be there, from its first byte
            to its last; for a long one a second more for each KiB.
        connection_timeout: Seconds an idle connection is kept open.
        headers: Sent with every answer the server itself makes (a refusal, an
            unparsable request), as the application sends them with its own.
        problem: Makes these answers; called as `kit.problem` is.

    Thread safety: immutable.
    """

    max_concurrency: int = field(default=128, validator=gt(0))
    max_queue: int = field(default=128, validator=ge(0))
    max_request_size: int = field(default=_MIB, validator=gt(0))
    write_timeout: float = field(default=30.0, validator=gt(0.0))
    request_timeout: float = field(default=60.0, validator=gt(0.0))
    connection_timeout: int = field(default=120, validator=gt(0))
    headers: tuple[tuple[str, str], ...] = field(default=(), converter=tuple)
    problem: Callable[..., Reply] = problem

    def connection_limit(self) -> int:
        """Return how many connections are open at most.

        At waitress's own limit of 100 the server would stop accepting, and health
        checks starve; above the process's descriptors `accept` fails for ever.
        """
        wanted = 2 * self.max_concurrency + self.max_queue + 256
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY:
            return wanted
        return min(wanted, max(soft - _SPARE_DESCRIPTORS, soft // 2))

    def waitress_settings(self) -> dict[str, Any]:
        """Return the keyword arguments for `waitress.create_server`."""
        return {
            "asyncore_use_poll": True,
            "channel_request_lookahead": 0,
            "channel_timeout": self.connection_timeout,
            "clear_untrusted_proxy_headers": False,  # `channel` leaves them out
            "connection_limit": self.connection_limit(),
            "expose_tracebacks": False,
            "ident": None,
            "log_socket_errors": False,
            "max_request_body_size": max(4 * self.max_request_size, 16 * _MIB),
            "outbuf_high_watermark": _MIB,
            "recv_bytes": 1 << 16,
        }
