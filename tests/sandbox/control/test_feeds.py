"""A log as events: looked at less often the longer nothing comes."""

from __future__ import annotations

import threading

import pytest

from ppio_agent.sandbox.control import feeds
from ppio_agent.sandbox.control.feeds import LogFeed
from ppio_agent.sandbox.logfollow import LogFollower
from ppio_agent.sandbox.logview import LogEntry, LogQuery


class Quiet(LogFollower):
    """Has an entry at the looks with these numbers only."""

    def __init__(self, *finds: int) -> None:
        super().__init__(lambda: None)
        self.looks = 0
        self._finds = finds

    def read(self) -> list[tuple[int, LogEntry]] | None:
        self.looks += 1
        if self.looks not in self._finds:
            return None
        entry = LogEntry(at=self.looks, level="info", line="x", stream="stdout")
        return [(self.looks * 1000, entry)]


class Living(threading.Event):
    """A sandbox that does not end, and says for how long that was waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waits.append(timeout)
        return super().wait(timeout)


def test_the_longer_nothing_comes_the_less_often_it_is_looked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until something does; a reader that asks more often changes nothing."""
    monkeypatch.setattr(feeds, "_SHORTEST_PAUSE", 0.02)
    monkeypatch.setattr(feeds, "_LONGEST_PAUSE", 0.08)
    follower, living = Quiet(5, 7), Living()
    feed = LogFeed(follower, LogQuery(), ended=living)
    (note,) = feed.read(0, None)
    pauses = [0.02, 0.04, 0.08, 0.08]
    assert note.seq == 5000
    for most, waited in zip(pauses, living.waits, strict=True):
        assert most / 4 < waited <= most
    living.waits.clear()
    (note,) = feed.read(note.seq, None)
    assert (note.seq, len(living.waits)) == (7000, 1)
    assert living.waits[0] <= 0.02

    looks = follower.looks
    monkeypatch.setattr(feed, "_pause", 60.0)
    for _ in range(5):
        assert feed.read(note.seq, 0.0) == []
    assert follower.looks == looks + 1


def test_a_log_that_is_not_followed_ends_where_it_ends_now() -> None:
    feed = LogFeed(Quiet(1), LogQuery(), ended=None)

    assert [note.seq for note in feed.read(0, None)] == [1000]
    assert [(n.seq, n.kind) for n in feed.read(1000, None)] == [(1000, "end")]
