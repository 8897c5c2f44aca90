"""The thread that keeps busy sandboxes alive."""

from __future__ import annotations

import itertools
import threading
import time

from attrs import define, field

from ppio_agent.client.caretaker import Caretaker
from ppio_agent.exceptions import NetworkError
from tests.support import new_threads, wait_until

NUMBERS = itertools.count()


@define(eq=False)
class Session:
    """Due at once, and after each extension only much later."""

    busy: bool = True
    fails: int = 0
    extended: int = 0
    closed: threading.Event = field(factory=threading.Event)
    sandbox_id: str = field(factory=lambda: f"sb{next(NUMBERS)}")
    extend_at: float = field(factory=time.monotonic)

    def extend(self) -> None:
        self.extended += 1
        if self.extended <= self.fails:
            self.extend_at = time.monotonic() + 0.05
            raise NetworkError("the platform does not answer")
        self.extend_at = time.monotonic() + 1000

    def close(self) -> None:
        self.closed.set()


def test_a_thousand_sessions() -> None:
    """One thread extends each that is due and busy, once; none that is idle."""
    names = new_threads("ppio-client-keepalive")
    caretaker = Caretaker()
    sessions = [Session() for _ in range(1000)]
    idle = [Session(busy=False) for _ in range(10)]
    for session in sessions + idle:
        caretaker.watch(session)
    wait_until(lambda: all(s.extended for s in sessions))
    running = names()
    caretaker.close()

    assert [s.extended for s in sessions] == [1] * 1000
    assert [s.extended for s in idle] == [0] * 10
    assert len(running) == 1
    assert names() == []


def test_one_that_fails_is_tried_again_and_holds_up_nobody() -> None:
    """After a while, without anybody asking; the others are extended meanwhile."""
    caretaker = Caretaker()
    failing, well = Session(fails=2), Session()
    caretaker.watch(failing)
    caretaker.watch(well)
    wait_until(lambda: failing.extended == 3)
    caretaker.close()

    assert well.extended == 1


def test_an_abandoned_one_is_closed_without_holding_up_the_others() -> None:
    """Though its end takes long."""
    caretaker = Caretaker()
    release = threading.Event()

    class Slow(Session):
        def close(self) -> None:
            assert release.wait(5)
            super().close()

    slow, well = Slow(busy=False), Session()
    caretaker.watch(slow)
    caretaker.abandon(slow)
    caretaker.watch(well)
    wait_until(lambda: well.extended == 1)
    release.set()

    assert slow.closed.wait(5)
    caretaker.close()


def test_close_is_idempotent() -> None:
    """What was abandoned before is closed; the thread is joined."""
    names = new_threads("ppio-client-keepalive")
    caretaker = Caretaker()
    session = Session(busy=False)
    caretaker.watch(session)
    caretaker.abandon(session)
    caretaker.close()
    caretaker.close()

    assert names() == []
    assert session.closed.wait(5)
