"""Who is connected is counted, and who has been idle longest makes room."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from ppio_agent.sandbox.edge import crowd as crowd_module
from ppio_agent.sandbox.edge.crowd import Crowd


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

    def __init__(self, crowd: Crowd, *, refused: bool = False) -> None:
        self.crowd = crowd
        self.left = False
        self.asks, self.answered = asyncio.Event(), asyncio.Event()
        self.idle_again = asyncio.Event()
        self.task = asyncio.ensure_future(self.stay())
        crowd.add(self.task, self.leave, refused=refused)

    def leave(self) -> None:
        self.left = True

    async def stay(self) -> None:
        await self.asks.wait()
        with self.crowd.busy():
            await self.answered.wait()
        self.idle_again.set()
        await asyncio.Event().wait()


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_the_longest_idle_goes_first(loop: asyncio.AbstractEventLoop) -> None:
    """Which is not who came first; and who is busy stays."""

    async def story() -> None:
        crowd = Crowd(3, loop)
        first, second, third = [Guest(crowd) for _ in range(3)]
        first.asks.set()
        first.answered.set()
        await first.idle_again.wait()
        third.asks.set()
        await turns()

        assert crowd.make_room()
        assert len(crowd) == 2
        fourth = Guest(crowd)
        await turns()
        assert [it.left for it in (first, second, third)] == [False, True, False]
        assert crowd.make_room()
        assert crowd.make_room()  # there is one less already
        await turns()
        assert [it.left for it in (first, third, fourth)] == [True, False, False]
        await crowd.dismiss()

    loop.run_until_complete(story())


def test_there_is_no_room_among_the_busy(loop: asyncio.AbstractEventLoop) -> None:
    """Nor by those who are only told so."""

    async def story() -> None:
        crowd = Crowd(1, loop)
        guest, _refused = Guest(crowd), Guest(crowd, refused=True)
        guest.asks.set()
        await turns()

        assert not crowd.make_room()
        assert len(crowd) == 2
        await crowd.dismiss()
        assert guest.left
        assert len(crowd) == 0

    loop.run_until_complete(story())


def test_who_has_just_come_is_spared(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many who come at once do not push each other out: the last are told no."""
    monkeypatch.setattr(crowd_module, "_SPARED", 60.0)

    async def story() -> None:
        crowd = Crowd(1, loop)
        guest = Guest(crowd)
        assert not crowd.make_room()
        await turns()
        assert not guest.left
        await crowd.dismiss()

    loop.run_until_complete(story())
