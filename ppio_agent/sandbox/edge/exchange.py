"""One request carried to an upstream and its answer carried back, both as they come."""

from __future__ import annotations

import asyncio

import h11
from attrs import define, field

from .heads import (
    Strip,
    forward_end,
    forward_request,
    forward_response,
    forward_switch,
    request_length,
    response_length,
)
from .pump import Body, Peer, PeerError
from .tunnel import Tunnel

__all__ = ["Exchange", "UnansweredError"]


# From here on, the copies that are saved are worth a connection that is not kept.
_LARGE = 1024 * 1024
_SWITCHING = 101


class UnansweredError(Exception):
    """The upstream was lost before it answered; the client may still be answered.

    Args:
        closed: Whether the connection just ended; False: what came was not HTTP.
    """

    def __init__(self, *, closed: bool) -> None:
        super().__init__(closed)
        self.closed = closed


@define(eq=False, kw_only=True)
class Exchange:
    """Carries one request and its answer between two peers.

    Both bodies are under way at once, each only as fast as it is taken. An upstream
    that answers early ends the exchange; what is left of the request is not sent. One
    that agrees to another protocol makes it a tunnel, until that has ended.

    Args:
        client: Who asks; its request's head has been read.
        upstream: Who answers; closed at the end unless it can be used again.
        request: As it came.
        address: Where the client is.
        strip: Whether a header must not reach the upstream; None passes all.
        secure: Whether the client speaks TLS.
    """

    _client: Peer
    _upstream: Peer
    _request: h11.Request
    _address: str
    _strip: Strip | None
    _secure: bool = False
    # What the client did wrong in its body.
    _fault: PeerError | None = field(init=False, default=None)

    async def run(self, body: Body) -> None:
        """Carry out the exchange.

        Args:
            body: What has already been read of the request's body.

        Raises:
            UnansweredError: Nothing was answered, and the client has no fault in it.
            PeerError: The client's fault, or its connection had to be cut.
        """
        loop = asyncio.get_running_loop()
        upload = loop.create_task(self._upload(body))
        try:
            await self._download(upload)
        except PeerError as exc:
            if exc.peer is self._client:
                raise
            raise self._lost(exc) from exc
        finally:
            # h11 takes a request for sent once it is written, so ask the task, too.
            if not (upload.done() and self._upstream.finished):
                self._upstream.close()
            upload.cancel()
            await asyncio.wait([upload])

    async def _upload(self, body: Body) -> None:
        try:
            await _carry(
                self._client,
                self._upstream,
                forward_request(
                    self._request,
                    client=self._address,
                    strip=self._strip,
                    secure=self._secure,
                ),
                body,
                length=request_length(self._request),
                strip=self._strip,
            )
        except PeerError as exc:
            if exc.peer is self._client:
                self._fault = exc
                self._upstream.close()
            elif isinstance(exc.__cause__, TimeoutError) and self._client.may_answer:
                self._upstream.close()
            # An upstream that takes no more may have answered: reading it will show.

    async def _download(self, upload: asyncio.Task[None]) -> None:
        modern = self._request.http_version >= b"1.1"
        response = await self._upstream.next_event()
        while type(response) is h11.InformationalResponse:
            if response.status_code == _SWITCHING:
                await self._switch(response, upload)
                return
            if modern:
                await self._client.send(forward_response(response))
            response = await self._upstream.next_event()
        if type(response) is not h11.Response:
            raise PeerError(self._upstream, "there was no answer")
        body = self._upstream.take_body()
        await _carry(
            self._upstream,
            self._client,
            forward_response(response, close=self._is_last(body)),
            body,
            length=response_length(self._request, response),
            trailers=modern,
        )

    def _is_last(self, answer: Body) -> bool:
        """Whether the client's connection is known to end with this exchange.

        It does if not all of the request is read when the answer has ended. One that is
        poured never shows as read.
        """
        if self._client.http.their_state is not h11.SEND_BODY:
            return False
        return _has_ended(answer) or request_length(self._request) >= _LARGE

    async def _switch(
        self, response: h11.InformationalResponse, upload: asyncio.Task[None]
    ) -> None:
        # The new protocol begins behind the whole of the request.
        await asyncio.wait([upload])
        # From here on the client's end is that of one direction.
        self._client.on_end = None
        await self._client.send(forward_switch(response))
        await Tunnel(self._client, self._upstream).run()

    def _lost(self, exc: PeerError) -> Exception:
        if self._fault is not None:
            return self._fault
        if self._client.may_answer:
            return UnansweredError(closed=not exc.status)
        # Cut, so that nobody takes half an answer for a whole one. To HTTP/1.0 the
        # end of the connection may be the end of the body: only a reset tells. So it
        # is in a tunnel.
        modern = self._request.http_version >= b"1.1"
        switched = self._client.http.our_state is h11.SWITCHED_PROTOCOL
        self._client.close(reset=switched or not modern)
        return PeerError(self._client, "cut off in the middle of an answer")


async def _carry(
    source: Peer,
    sink: Peer,
    head: h11.Request | h11.Response,
    body: Body,
    *,
    length: int,
    trailers: bool = True,
    strip: Strip | None = None,
) -> None:
    """Send a head, and then the body as it comes.

    Args:
        source: Where the body comes from.
        sink: Where all of it goes.
        head: What is sent first, in one write with what is there of the body.
        body: What has been read of it.
        length: Of the whole body, if its head tells; else 0.
        trailers: Whether the sink understands them.
        strip: Whether a trailer must not reach the sink; None passes all.
    """

    def passed(body: Body) -> Body:
        return [
            forward_end(event, trailers=trailers, strip=strip)
            if type(event) is h11.EndOfMessage
            else event
            for event in body
        ]

    await sink.send(head, *passed(body))
    left = length - sum(len(event.data) for event in body if type(event) is h11.Data)
    if left >= _LARGE:
        await sink.pour(source, left)
        await sink.send(h11.EndOfMessage())
        return
    while not _has_ended(body):
        body = await source.body()
        await sink.send(*passed(body))


def _has_ended(body: Body) -> bool:
    return bool(body) and type(body[-1]) is h11.EndOfMessage
