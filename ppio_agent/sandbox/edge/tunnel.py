"""Two connections joined into one, once their protocol is no longer HTTP."""

from __future__ import annotations

import asyncio
from typing import Final

from attrs import define, field

from .pump import Peer, PeerError

__all__ = ["Tunnel"]

# A side that has ended may have gone altogether, which shows only when it is sent
# something. So the other is not waited for as long as it likes.
_HALF_OPEN: Final = 60.0


@define(eq=False)
class Tunnel:
    """Carries bytes between two peers, each direction until its sender ends it.

    What h11 was given of them and did not take is carried first.

    Args:
        client: Who asked for the tunnel.
        upstream: Who agreed.
        half_open: Seconds for which nothing may come once one direction has ended.
    """

    _client: Peer
    _upstream: Peer
    _half_open: float = field(default=_HALF_OPEN, kw_only=True)
    # Pieces carried so far.
    _carried: int = field(init=False, default=0)

    async def run(self) -> None:
        """Carry until both directions have ended.

        Raises:
            PeerError: One side is lost, or ended and heard no more of the other.
        """
        loop = asyncio.get_running_loop()
        flows = {
            loop.create_task(self._flow(self._client, self._upstream)),
            loop.create_task(self._flow(self._upstream, self._client)),
        }
        try:
            await self._until_ended(flows)
        finally:
            for flow in flows:
                flow.cancel()
            await asyncio.wait(flows)

    async def _until_ended(self, flows: set[asyncio.Task[None]]) -> None:
        done, left = await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
        while left:
            for flow in done:
                flow.result()
            before = self._carried
            done, left = await asyncio.wait(left, timeout=self._half_open)
            if left and self._carried == before:
                raise PeerError(self._client, "half of the connection was left open")
        for flow in flows:
            flow.result()

    async def _flow(self, source: Peer, sink: Peer) -> None:
        data: bytes | bytearray = source.http.trailing_data[0]
        while data or (data := await source.receive()):
            await sink.send_raw(data)
            self._carried += 1
            data = b""
        sink.end()
