"""One client's connection: its requests, each routed, forwarded and answered in turn."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
import ssl

import h11
from attrs import define, field, frozen

from .addressing import BadRoute, ControlPlane, SandboxPort, Target, is_own_host, route
from .crowd import Crowd
from .dialer import Dialer
from .exchange import Exchange, UnansweredError
from .heads import check_request, header_of, refusal_events, repeatable, request_length
from .pump import Body, Peer, PeerError
from .secure import handshake
from .upstreams import Admission, EdgeRefusal, Upstreams

__all__ = ["ClientConnection", "Setting", "serve_secure"]

_log = logging.getLogger(__name__)

# Bytes of a body that is held until it is there: all but those of templates.
_SMALL = 64 * 1024


@frozen(kw_only=True)
class Setting:
    """What all connections of one edge share.

    Attributes:
        upstreams: What is behind the edge.
        dialer: The way there.
        domain: Of the sandboxes' host names.
        crowd: Those who are connected.
        head_timeout: Seconds a head may take from its first byte, and a small body for
            the control plane from its head on.
        idle_timeout: Seconds a client may keep a connection without a request.
        handshake_timeout: Seconds a client may take to agree on TLS.
        tls: Makes `SecureSocket`s; None: there is no TLS.
        tls_authority: Host and port of the TLS listener, if there is one.
    """

    upstreams: Upstreams
    dialer: Dialer
    crowd: Crowd
    domain: str
    head_timeout: float
    idle_timeout: float
    handshake_timeout: float
    tls: ssl.SSLContext | None
    tls_authority: str | None


@define(eq=False)
class ClientConnection:
    """Serves one client's connection until either side ends it.

    A client that leaves in the middle of an exchange cancels the serving task, and with
    it whatever it is at: a held dial, an upload, a stream.

    Args:
        peer: The connection; whoever runs `serve` closes it afterwards.
        address: Where the client is.
        setting: Shared with all others.
        secure: Whether the client speaks TLS.
    """

    _peer: Peer
    _address: str
    _setting: Setting
    _secure: bool = field(default=False, kw_only=True)

    async def serve(self) -> None:
        """Answer requests, one after another, until the connection ends."""
        # Lost: the client has gone, or was cut off in the middle of an answer.
        with contextlib.suppress(PeerError):
            while await self._serve_request():
                self._peer.http.start_next_cycle()
            await self._peer.linger()

    async def _serve_request(self) -> bool:
        """Serve the next request; whether another may follow."""
        request = None
        try:
            request = await self._next_request()
            if request is None:
                return False
            check_request(request)
            if request.method == b"CONNECT":
                await self._serve_inside(request)
                return False
            await self._forward(request)
        except EdgeRefusal as refusal:
            await self._answer(refusal, request)
        except PeerError as exc:
            if not (exc.status and exc.peer is self._peer and self._peer.may_answer):
                raise
            await self._answer(EdgeRefusal.of(exc.status, str(exc)), request)
        except Exception:  # noqa: BLE001 - outermost frame of the request
            _log.exception("a request failed at the edge")
            if not self._peer.may_answer:
                return False
            await self._answer(EdgeRefusal.of(500, "the edge failed"), request)
        return self._peer.finished

    async def _next_request(self) -> h11.Request | None:
        if not await self._peer.arrived(self._setting.idle_timeout):
            return None
        event = await self._peer.next_event(self._setting.head_timeout)
        return event if type(event) is h11.Request else None

    async def _answer(self, refusal: EdgeRefusal, request: h11.Request | None) -> None:
        """Give the edge's own answer, and say so if the connection ends with it."""
        http = self._peer.http
        if http.their_state is h11.SEND_BODY:
            with contextlib.suppress(PeerError):  # it is refused whatever follows
                self._peer.take_body()  # a small body is here already
        close = http.their_state is not h11.DONE
        await self._peer.send(*refusal_events(refusal, request, close=close))

    async def _forward(self, request: h11.Request) -> None:
        target = self._route(request)
        header = functools.partial(header_of, request)
        asked = b"%s %s" % (request.method, request.target)
        admit = self._setting.upstreams.admit
        with admit(target, header, asked.decode("latin-1")) as admission:
            body = self._peer.take_body()
            if isinstance(target, ControlPlane):
                body = await self._await_small(request, body)
            await self._carry(request, target, admission, body)

    async def _await_small(self, request: h11.Request, body: Body) -> Body:
        """Return a small body whole, which takes no connection while it is awaited."""
        if not 0 < request_length(request) <= _SMALL:
            return body
        if self._peer.http.they_are_waiting_for_100_continue:
            await self._peer.send(
                h11.InformationalResponse(status_code=100, headers=[])
            )
        return await self._peer.rest_of_body(body, self._setting.head_timeout)

    async def _carry(
        self, request: h11.Request, target: Target, admission: Admission, body: Body
    ) -> None:
        again = repeatable(request, body)
        dialer = self._setting.dialer
        busy = self._setting.crowd.busy(sandboxed=isinstance(target, SandboxPort))
        with busy as leave, self._peer.at_end(leave):
            kept = dialer.kept(target, repeatable=again) if admission.reuse else None
            if kept is not None:
                try:
                    return await self._exchange(request, target, kept, body)
                except UnansweredError as exc:
                    if not (exc.closed and again):
                        raise _refusal(exc) from exc
            upstream = await dialer.dial(target, wakes=admission.wakes)
            try:
                await self._exchange(request, target, upstream, body)
            except UnansweredError as exc:
                raise _refusal(exc) from exc

    async def _serve_inside(self, request: h11.Request) -> None:
        """Be the proxy and the host behind it, too: agree on TLS, and serve that."""
        setting = self._setting
        if setting.tls is None or self._secure:
            message = "CONNECT is supported on the plain port, if tls_port is set"
            raise EdgeRefusal.of(501, message)
        if not is_own_host(
            request.target.decode("latin-1"),
            domain=setting.domain,
            own=setting.tls_authority,
        ):
            message = "CONNECT leads to hosts of this platform only, such as"
            raise EdgeRefusal.of(403, f"{message} api.{setting.domain}:443")
        await self._peer.send(h11.Response(status_code=200, headers=[]))
        sock = self._peer.detach()
        await serve_secure(sock, self._address, setting, tls=setting.tls)

    def _route(self, request: h11.Request) -> Target:
        target = route(
            request.headers,
            request.target,
            domain=self._setting.domain,
            sandbox_of=self._setting.upstreams.sandbox_of,
            is_short_key=self._setting.upstreams.is_short_key,
        )
        if isinstance(target, BadRoute):
            raise EdgeRefusal.of(400, target.message)
        return target

    async def _exchange(
        self, request: h11.Request, target: Target, upstream: Peer, body: Body
    ) -> None:
        sandboxed = isinstance(target, SandboxPort)
        exchange = Exchange(
            client=self._peer,
            upstream=upstream,
            request=request,
            address=self._address,
            strip=self._setting.upstreams.strip if sandboxed else None,
            secure=self._secure,
        )
        try:
            await exchange.run(body)
        finally:
            self._setting.dialer.give_back(target, upstream)


async def serve_secure(
    sock: socket.socket,
    address: str,
    setting: Setting,
    *,
    tls: ssl.SSLContext,
) -> None:
    """Agree with a client on TLS, then serve it.

    Args:
        sock: Connected; closed in the end.
        address: Where the client is.
        setting: Shared with all others.
        tls: Makes `SecureSocket`s.
    """
    try:
        secure = await handshake(sock, tls, timeout=setting.handshake_timeout)
    except OSError as exc:
        _log.debug("a client did not agree on TLS: %s", exc)
        return
    peer = Peer(secure, h11.SERVER, asyncio.get_running_loop())
    try:
        await ClientConnection(peer, address, setting, secure=True).serve()
    finally:
        peer.close()


def _refusal(exc: UnansweredError) -> EdgeRefusal:
    # Without `sandboxId`, since clients read its presence as "nothing was run".
    if exc.closed:
        return EdgeRefusal.of(502, "the connection was closed before it was answered")
    return EdgeRefusal.of(502, "what was answered is not HTTP")
