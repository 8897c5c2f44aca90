"""Who is connected is counted, and who has been idle longest makes room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import pytest

from ppio_agent.sandbox.edge import crowd as crowd_module
from ppio_agent.sandbox.edge.crowd import Crowd
from ppio_agent.sandbox.edge.upstreams import EdgeRefusal


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd_module, "_SPARED", 0.0)


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.SelectorEventLoop()
    yield loop
    loop.close()


class Guest:
    """A connection: idle, or busy while it is told so."""

    def __init__(self, crowd: Crowd, *, sandboxed: bool = True) -> None:
        self.crowd = crowd
        self.sandboxed = sandboxed
        self.left = False
        self.asks, self.answered = asyncio.Event(), asyncio.Event()
        self.idle_again = asyncio.Event()
        self.task = asyncio.ensure_future(self.stay())
        crowd.add(self.task, self.leave)

    def leave(self) -> None:
        self.left = True

    async def stay(self) -> None:
        await self.asks.wait()
        with self.crowd.busy(sandboxed=self.sandboxed):
            await self.answered.wait()
        self.idle_again.set()
        await asyncio.Event().wait()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_longest_idle_goes_first(loop: asyncio.AbstractEventLoop) -> None:
    """Which is not who came first; and who is busy stays."""

    async def story() -> None:
        crowd = Crowd(2, loop, reserve=1)
        first, second, third = [Guest(crowd) for _ in range(3)]
        first.asks.set()
        first.answered.set()
        await first.idle_again.wait()
        third.asks.set()
        await turns()

        fourth = Guest(crowd)
        assert len(crowd) == 3
        await turns()
        assert [it.left for it in (first, second, third)] == [False, True, False]
        Guest(crowd)
        await turns()
        assert [it.left for it in (first, third, fourth)] == [True, False, False]
        await crowd.dismiss()

    loop.run_until_complete(story())


def test_there_is_no_room_among_the_busy(loop: asyncio.AbstractEventLoop) -> None:
    """Until one of them has its answer."""

    async def story() -> None:
        crowd = Crowd(1, loop, reserve=1)
        sandboxed, other = Guest(crowd), Guest(crowd, sandboxed=False)
        for guest in (sandboxed, other):
            guest.asks.set()
        await turns()

        assert not crowd.has_room
        other.answered.set()
        await turns()
        assert crowd.has_room
        await crowd.dismiss()
        assert sandboxed.left
        assert len(crowd) == 0

    loop.run_until_complete(story())


def test_the_reserve_is_for_others_than_sandboxes(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """As many requests to sandboxes as there may be leave it free."""

    async def story() -> None:
        crowd = Crowd(1, loop, reserve=1)
        first, second = Guest(crowd), Guest(crowd)
        first.asks.set()
        await turns()
        second.asks.set()
        await turns()
        refusal = second.task.exception()
        assert isinstance(refusal, EdgeRefusal)
        assert (refusal.status, refusal.headers) == (503, {"Retry-After": "1"})

        other = Guest(crowd, sandboxed=False)
        other.asks.set()
        await turns()
        assert not crowd.has_room
        first.answered.set()
        await first.idle_again.wait()
        third = Guest(crowd)
        third.asks.set()
        await turns()
        assert not third.task.done()
        await crowd.dismiss()

    loop.run_until_complete(story())


def test_who_is_refused_goes_first(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though others have been idle for longer, and at once."""
    monkeypatch.setattr(crowd_module, "_SPARED", 60.0)

    async def story() -> None:
        crowd = Crowd(0, loop, reserve=2)
        idle = Guest(crowd)

        async def ask() -> None:
            with suppress(EdgeRefusal), crowd.busy(sandboxed=True):
                pass
            await asyncio.Event().wait()

        task = asyncio.ensure_future(ask())
        crowd.add(task, lambda: None)
        assert not crowd.has_room
        await turns()
        assert crowd.has_room
        Guest(crowd)
        await turns()
        assert task.cancelled()
        assert not idle.left
        await crowd.dismiss()

    loop.run_until_complete(story())


def test_who_has_just_come_is_spared(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many who come at once do not push each other out: the last have to wait."""
    monkeypatch.setattr(crowd_module, "_SPARED", 60.0)

    async def story() -> None:
        crowd = Crowd(1, loop, reserve=0)
        guest = Guest(crowd)
        assert not crowd.has_room
        await turns()
        assert not guest.left
        await crowd.dismiss()

    loop.run_until_complete(story())
