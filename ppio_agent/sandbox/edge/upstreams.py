"""What lies behind the edge, as the edge sees it: the port the platform implements."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from attrs import frozen

from ppio_agent.wire.headers import RETRY_AFTER
from ppio_agent.wire.json import Json

from .addressing import Target

__all__ = ["Admission", "EdgeRefusal", "Upstreams"]


class EdgeRefusal(Exception):  # noqa: N818 - an answer that is given, not a failure
    """A request goes no further than the edge, which answers it so.

    Args:
        status: HTTP status.
        body: The JSON object of the answer; clients tell cases apart by its keys and
            `message`.
        headers: More headers of the answer, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        body: Mapping[str, Json],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, body)
        self.status = status
        self.body = body
        self.headers = dict(headers or {})

    @classmethod
    def of(
        cls,
        status: int,
        message: str,
        *,
        retry_after: int | None = None,
        close: bool = False,
    ) -> EdgeRefusal:
        """Return the refusal with the plain body `{"code", "message"}`.

        Args:
            status: HTTP status.
            message: For the caller.
            retry_after: Seconds after which it may be tried again; None says nothing.
            close: End the connection with the answer.
        """
        headers = {} if retry_after is None else {RETRY_AFTER: str(retry_after)}
        if close:
            headers["Connection"] = "close"
        return cls(status, {"code": status, "message": message}, headers)

    @classmethod
    def stopping(cls) -> EdgeRefusal:
        """Return the refusal of a platform that is being closed."""
        return cls.of(503, "the platform is stopping", retry_after=1)


@frozen(kw_only=True)
class Admission:
    """How a request may go to its target.

    Attributes:
        reuse: Whether a connection kept from an earlier request may be used; False
            asks for a new one, as while the target changes its state.
        wakes: Whether it may wake a target that sleeps.
    """

    reuse: bool = True
    wakes: bool = False


class Upstreams(Protocol):
    """The control plane and the sandboxes, as the edge reaches them."""

    def admit(
        self, target: Target, header: Callable[[str], str | None], asked: str
    ) -> AbstractContextManager[Admission]:
        """Let a request go to `target`, as things are now.

        Entered for every request on the thread that serves all connections, and left
        there when the request has ended in whatever way, a tunnel that came of it
        included: no I/O, no wait, a look-up at most.

        Args:
            target: Where to.
            header: Gives the request's header of a name in lower case, or None.
            asked: Its method and its target, as in `GET /files?path=x`.

        Raises:
            EdgeRefusal: On entering: the target does not exist, takes no requests, or
                not this one.
        """

    def connect(
        self,
        target: Target,
        *,
        wakes: bool,
        still_wanted: Callable[[], bool] | None,
    ) -> socket.socket | None:
        """Return a new connected socket to `target`; the edge owns and closes it.

        Called on a thread of the edge's own. The first call for a request has
        `still_wanted=None` and shares few threads with all others: it must not wait
        for anything but the dial itself (1 s at most). If the target is not there yet
        but will be (its agent starts, its state changes), or takes no connection for
        now, it returns None and the edge calls again on a thread that may wait.

        Args:
            target: Where to.
            wakes: As the request was admitted.
            still_wanted: None: do not wait. Else wait for the target for as long as
                it takes by the target's own rules, and ask this at least each 0.25 s:
                False means that the client has left or the edge closes.

        Returns:
            The socket, blocking or not; None: see above, or no longer wanted.

        Raises:
            EdgeRefusal: It cannot be reached.
        """

    def strip(self, name: str, value: str) -> bool:
        """Return whether this header is a platform credential sandboxes must not see.

        Asked for each header of a request to a sandbox; `name` is in lower case.
        Called on the thread that serves all connections.
        """

    def is_short_key(self, text: str) -> bool:
        """Return whether this is the short form of a key of the platform.

        Called on the thread that serves all connections.
        """

    def sandbox_of(self, access_token: str) -> str | None:
        """Return the id of the live sandbox with this envd token, or None.

        Called on the thread that serves all connections.
        """
