"""Who may reach an app without a key: by address, Host and Origin. Pure.

A page of any site can make a browser send requests to this machine. Without
authentication only what names this machine, and comes from no foreign page, is served.
"""

from __future__ import annotations

from attrs import field, frozen

from ppio_agent._util.net import is_loopback
from ppio_agent.exceptions import PermissionDeniedError

__all__ = ["Guard"]

_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
_EXPOSED = (
    "Idempotency-Replayed, Location, Retry-After, X-Invocation-Id, X-PPIO-Agent,"
    " X-PPIO-Session-Id, X-Request-Id"
)


@frozen(kw_only=True)
class Guard:
    """The rules for one app.

    Attributes:
        local_only: Whether only requests that name this machine are served, and none
            from foreign pages: without authentication, on loopback.
        host: The configured host, which may be named, too.
        cors_origins: Origins whose pages may call; exact ones, or `*`.
        methods: What these may use.

    Thread safety: immutable.
    """

    local_only: bool
    host: str = "127.0.0.1"
    cors_origins: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("GET", "POST", "OPTIONS")
    _names: frozenset[str] = field(init=False)

    def __attrs_post_init__(self) -> None:
        bracketed = f"[{self.host}]" if ":" in self.host else self.host
        object.__setattr__(self, "_names", _LOCAL_NAMES | {bracketed.lower()})

    def check(
        self, method: str, host: str, origin: str | None, peer: str | None = None
    ) -> None:
        """Return if a request may be served.

        Args:
            method: Its method.
            host: Its Host header.
            origin: Its Origin header, or None.
            peer: The address that it came from, where the server knows one.

        Raises:
            PermissionDeniedError: It may not (`address_not_allowed`,
                `host_not_allowed` or `origin_not_allowed`).
        """
        if not self.local_only:
            return
        # A server of others may listen on any address, whatever the Host header says.
        if peer and peer != "127.0.0.1" and not _is_here(peer):
            raise PermissionDeniedError(
                "only programs of this machine are served: set up authentication",
                code="address_not_allowed",
            )
        name = host.rpartition(":")[0] if _has_port(host) else host
        if name.lower() not in self._names:
            raise PermissionDeniedError(
                "this Host is not served: configure `host`, or set up authentication",
                code="host_not_allowed",
            )
        if origin is None or method in {"GET", "HEAD", "OPTIONS"}:
            return
        if origin.partition("://")[2] != host and not self.allows(origin):
            raise PermissionDeniedError(
                "pages of this Origin may not call: add it to cors_origins",
                code="origin_not_allowed",
            )

    def allows(self, origin: str) -> bool:
        """Whether pages of `origin` may call."""
        return "*" in self.cors_origins or origin in self.cors_origins

    def headers(self, origin: str | None) -> tuple[tuple[str, str], ...]:
        """Return the CORS headers of an answer; none while CORS is off."""
        if not self.cors_origins:
            return ()
        if origin is None or not self.allows(origin):
            return (("Vary", "Origin"),)
        allowed = "*" if "*" in self.cors_origins else origin
        return (
            ("Access-Control-Allow-Origin", allowed),
            ("Access-Control-Expose-Headers", _EXPOSED),
            ("Vary", "Origin"),
        )

    def preflight(
        self, origin: str, requested_headers: str
    ) -> tuple[tuple[str, str], ...]:
        """Return what a preflight's answer has on top of `headers`.

        Raises:
            PermissionDeniedError: Pages of `origin` may not call.
        """
        if not self.allows(origin):
            raise PermissionDeniedError(
                "pages of this Origin may not call: add it to cors_origins",
                code="origin_not_allowed",
            )
        return (
            ("Access-Control-Allow-Methods", ", ".join(self.methods)),
            ("Access-Control-Allow-Headers", requested_headers),
            ("Access-Control-Max-Age", "600"),
        )


def _is_here(peer: str) -> bool:
    return is_loopback(peer.removeprefix("::ffff:"))


def _has_port(host: str) -> bool:
    return host.rpartition(":")[2].isdigit() and not host.endswith("]")
