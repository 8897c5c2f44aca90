"""A log that is followed: nothing twice, nothing lost, in whatever file it is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.sandbox import logfollow
from ppio_agent.sandbox.logfollow import LogFollower
from ppio_agent.sandbox.logs import RotatingFile
from ppio_agent.sandbox.logview import LogEntry, Numbering


def record(number: int, at: int | None = None) -> bytes:
    value = {
        "t": number if at is None else at,
        "stream": "stdout",
        "line": f"l{number}",
    }
    return json.dumps(value).encode() + b"\n"


class Follow:
    """A follower of a folder, and the lines that it has read."""

    def __init__(self, folder: Path) -> None:
        self.folder: Path | None = folder
        self.follower = LogFollower(lambda: self.folder)

    def lines(self) -> list[str]:
        found: list[str] = []
        while (entries := self.follower.read()) is not None:
            found += [entry.line for _, entry in entries]
        return found


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Follow]:
    follow = Follow(tmp_path)
    yield follow
    follow.follower.close()


def test_what_is_there_is_read_oldest_first(follow: Follow, tmp_path: Path) -> None:
    """From the oldest file to the newest."""
    for number, name in enumerate(("agent.log.2", "agent.log.1", "agent.log")):
        (tmp_path / name).write_bytes(record(number))

    assert follow.lines() == ["l0", "l1", "l2"]
    assert follow.lines() == []


def test_a_line_is_read_when_it_is_whole(follow: Follow, tmp_path: Path) -> None:
    """Neither before, nor what is no record at all."""
    log = tmp_path / "agent.log"
    assert follow.lines() == []
    log.write_bytes(record(1)[:-5])
    assert follow.lines() == []
    with log.open("ab") as file:
        file.write(record(1)[-5:] + b"no record\n" + record(2))
    assert follow.lines() == ["l1", "l2"]


@given(st.lists(st.integers(0, 6), max_size=12), st.integers(1, 3))
def test_rotation_loses_nothing_that_is_kept(
    tmp_path_factory: pytest.TempPathFactory, bursts: list[int], per_file: int
) -> None:
    """However much is written between two looks: what follows is gone or read."""
    folder = tmp_path_factory.mktemp("log")
    follow, number, seen = Follow(folder), 0, []
    log = RotatingFile(
        str(folder / "agent.log"), max_bytes=per_file * len(record(10)), files=3
    )
    for burst in bursts:
        for _ in range(burst):
            log.write(record(10 + number))
            number += 1
        read = follow.lines()
        seen += read
        # A burst that fits in the files which are kept is read to its last line.
        if burst <= per_file:
            assert read == [f"l{10 + n}" for n in range(number - burst, number)]
    log.close()
    follow.follower.close()
    assert seen == sorted(set(seen), key=lambda line: int(line[1:]))


def test_the_folder_may_move(follow: Follow, tmp_path: Path) -> None:
    """As the log of an ended sandbox does; while it is nowhere, nothing is lost."""
    (tmp_path / "live").mkdir()
    follow.folder = tmp_path / "live"
    log = RotatingFile(str(tmp_path / "live" / "agent.log"), max_bytes=1)
    log.write(record(1))
    assert follow.lines() == ["l1"]
    log.write(record(2))
    log.close()
    (tmp_path / "live").rename(tmp_path / "ended")
    follow.folder = None
    assert follow.lines() == []
    follow.folder = tmp_path / "ended"
    assert follow.lines() == ["l2"]


def test_only_the_last_may_be_wanted(follow: Follow, tmp_path: Path) -> None:
    """What comes after is read as ever."""
    log = tmp_path / "agent.log"
    log.write_bytes(b"".join(map(record, range(5))))

    last = [entry.line for _, entry in follow.follower.last(2)]
    with log.open("ab") as file:
        file.write(record(5))
    assert last == ["l3", "l4"]
    assert follow.lines() == ["l5"]
    assert follow.follower.last(0) == []


def test_what_is_too_old_is_passed_over_and_numbers_stay(tmp_path: Path) -> None:
    """Whoever goes on at an instant finds the numbers that others have found."""
    numbers = iter(range(100_000))
    for name in ("agent.log.2", "agent.log.1", "agent.log"):
        records = (record(n, n // 7) for n in itertools.islice(numbers, 3000))
        (tmp_path / name).write_bytes(b"".join(records))

    def read(**since: int) -> dict[int, str]:
        follower, found = LogFollower(lambda: tmp_path, **since), {}
        while (entries := follower.read()) is not None:
            found.update((number, entry.line) for number, entry in entries)
        follower.close()
        return found

    everything = read()
    for since in (0, 3, 428, 429, 857, 1285, 1286):  # also where a file begins
        found = read(since=since)
        wanted = {n: line for n, line in everything.items() if n >= since * 1000}
        assert {n: line for n, line in found.items() if n >= since * 1000} == wanted
        assert len(found) < len(wanted) + 3000
    follower = LogFollower(lambda: tmp_path)
    assert follower.last(9) == [
        (n, LogEntry(at=n // 1000, level="info", line=line, stream="stdout"))
        for n, line in list(everything.items())[-9:]
    ]
    follower.close()


def test_a_log_in_which_nothing_comes_is_not_opened_again(
    follow: Follow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many are followed that are idle."""
    log = tmp_path / "agent.log"
    log.write_bytes(record(1))
    assert follow.lines() == ["l1"]
    opened: list[Path] = []
    monkeypatch.setattr(logfollow, "open_files", lambda path: opened.append(path) or {})
    for _ in range(3):
        assert follow.lines() == []
    assert opened == []
    with log.open("ab") as file:
        file.write(record(2))
    assert follow.lines() == ["l2"]
    log.rename(tmp_path / "agent.log.1")
    assert follow.lines() == []
    assert opened == [tmp_path]


@given(st.lists(st.integers(0, 5), max_size=30))
def test_numbers_rise_and_are_the_same_again(instants: list[int]) -> None:
    """Whoever reads a log finds the same numbers, also if the clock was set back."""
    entries = [
        LogEntry(at=at, level="info", line="", stream="stdout") for at in instants
    ]
    first, second = Numbering(), Numbering()
    numbers = [first.of(entry) for entry in entries]

    assert numbers == [second.of(entry) for entry in entries]
    assert all(a < b for a, b in itertools.pairwise(numbers))
    assert all(
        number >= entry.at * 1000
        for number, entry in zip(numbers, entries, strict=True)
    )


@pytest.mark.parametrize("at", [None, 7], ids=["as written", "by an agent itself"])
def test_the_last_of_long_lines_are_as_many_as_a_page_has(
    follow: Follow, tmp_path: Path, at: int | None
) -> None:
    """They are held in memory until they are sent."""
    with (tmp_path / "agent.log").open("wb") as file:
        for number in range(90):
            file.write(record(number, at).replace(b': "l', b': "' + b"x" * 60_000))

    last = [entry.line for _, entry in follow.follower.last(1000)]
    assert 15 < len(last) < 18
    assert last[-1] == "x" * 60_000 + "89"
    assert follow.lines() == []
