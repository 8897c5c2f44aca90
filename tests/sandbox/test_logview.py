"""Reading logs: files in order, torn lines left out, filters applied."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.sandbox import logview
from ppio_agent.sandbox.logs import AgentLog
from ppio_agent.sandbox.logview import (
    FILES,
    LARGEST_PAGE,
    LogEntry,
    LogQuery,
    parse_entry,
    read_log,
)


def _raw(at: int, line: str) -> bytes:
    return json.dumps({"t": at, "stream": "stdout", "line": line}).encode()


def _lines(folder: Path, **query: Any) -> list[str]:
    return [entry.line for entry in read_log(folder, LogQuery(**query))]


def _entry(at: int, line: str = "x", level: str = "info") -> LogEntry:
    return LogEntry(at=at, level=level, line=line, stream="stdout")


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("plain", "info"),
        ('{"level": "ERROR", "m": 1}', "error"),
        ('{"level": "warning"}', "warn"),
        ('{"level": "critical"}', "error"),
        ('{"level": 5}', "info"),
        ('{"level"', "info"),
        ("{" * 9, "info"),
    ],
)
def test_the_level_is_that_of_a_json_line(line: str, level: str) -> None:
    assert parse_entry(_raw(5, line)) == _entry(5, line, level)


@pytest.mark.parametrize(
    "raw", [b'{"t": 1, "str', b"[]", b'{"t": "1"}', b'{"t": -1,"line":"","stream":""}']
)
def test_a_torn_line_is_left_out(raw: bytes) -> None:
    assert parse_entry(raw) is None


def test_files_are_read_oldest_first(tmp_path: Path) -> None:
    (tmp_path / "agent.log.1").write_bytes(_raw(1, "a") + b"\n" + _raw(2, "b") + b"\n")
    (tmp_path / "agent.log").write_bytes(_raw(3, "c") + b"\n" + b'{"t": 4, "li')

    assert _lines(tmp_path) == ["a", "b", "c"]
    assert _lines(tmp_path / "none") == []
    assert _lines(tmp_path, backward=True) == ["c", "b", "a"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (LogQuery(), [1, 2, 3, 4, 5, 6]),
        (LogQuery(limit=2), [1, 2]),
        (LogQuery(start=3, limit=2), [3, 4]),
        (LogQuery(backward=True, limit=2), [6, 5]),
        (LogQuery(start=3, backward=True), [3, 2, 1]),
        (LogQuery(level="warn"), [1, 3, 5]),
        (LogQuery(search="line 4"), [4]),
    ],
)
def test_entries_are_filtered(
    tmp_path: Path, query: LogQuery, found: list[int]
) -> None:
    levels = {0: "debug", 1: "error"}
    with (tmp_path / "agent.log").open("wb") as file:
        for n in range(1, 7):
            line = json.dumps({"level": levels[n % 2], "m": f"line {n}"})
            file.write(_raw(n, line) + b"\n")

    assert [e.at for e in read_log(tmp_path, query)] == found


@settings(max_examples=60)
@given(
    steps=st.lists(st.integers(0, 2), max_size=120),
    cuts=st.tuples(st.integers(0, 120), st.integers(0, 120)),
    start=st.none() | st.integers(0, 100),
    limit=st.integers(1, 200),
)
def test_what_is_found_by_parts_is_what_is_there(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[int],
    cuts: tuple[int, int],
    start: int | None,
    limit: int,
) -> None:
    """From any instant, either way, in whatever files; with lines that are none."""
    folder = tmp_path_factory.mktemp("log")
    ats = list(itertools.accumulate(steps))
    records = [
        (b"torn\n" if n % 5 == 4 else b"") + _raw(at, "x" * (n % 23)) + b"\n"
        for n, at in enumerate(ats)
    ]
    low, high = sorted(cuts)
    for name, part in zip(
        FILES, (records[:low], records[low:high], records[high:]), strict=True
    ):
        (folder / name).write_bytes(b"".join(part))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logview, "_BLOCK", 64)
        for backward in (False, True):
            query = LogQuery(start=start, limit=limit, backward=backward)
            wanted = [
                at
                for at in (reversed(ats) if backward else ats)
                if start is None or (at <= start if backward else at >= start)
            ]
            assert [e.at for e in read_log(folder, query)] == wanted[:limit]


def test_only_a_small_part_of_a_long_log_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever one begins in it, and whichever way one goes."""
    with (tmp_path / "agent.log").open("wb") as file:
        file.writelines(_raw(n, f"line {n}") + b"\n" for n in range(20_000))
    parsed: list[bytes] = []

    def noted(raw: bytes) -> LogEntry | None:
        parsed.append(raw)
        return parse_entry(raw)

    monkeypatch.setattr(logview, "parse_entry", noted)
    for query in (
        {"backward": True},
        {"backward": True, "start": 9000},
        {"start": 15_000},
        {"start": 30_000},
    ):
        parsed.clear()
        assert len(_lines(tmp_path, limit=1, **query)) == (query != {"start": 30_000})
        assert len(parsed) < 600


@pytest.mark.parametrize("text", ['say "hä"', "back\\slash", "a\tb", "plain"])
def test_any_text_is_searched_as_it_was_written(tmp_path: Path, text: str) -> None:
    log = AgentLog(str(tmp_path / "agent.log"))
    log.feed("stdout", f"no\nit: {text}.\nnothing\n".encode())
    log.close()

    assert _lines(tmp_path, search=text) == [f"it: {text}."]
    assert _lines(tmp_path, search="stream") == []


def test_a_file_that_moves_while_files_are_opened_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, and none of the older ones is missed but the one that goes."""
    for number, name in enumerate(reversed(FILES)):
        (tmp_path / name).write_bytes(_raw(9 - number, f"l{9 - number}") + b"\n")
    fstat = os.fstat

    def rotate(descriptor: int) -> os.stat_result:
        monkeypatch.undo()
        for newer, older in (FILES[1], FILES[0]), (FILES[2], FILES[1]):
            (tmp_path / newer).rename(tmp_path / older)
        return fstat(descriptor)

    monkeypatch.setattr(logview.os, "fstat", rotate)
    assert _lines(tmp_path) == ["l8", "l9"]


def test_an_entry_on_the_wire() -> None:
    assert _entry(1500).to_dict() == {
        "timestamp": "1970-01-01T00:00:01.500Z",
        "level": "info",
        "message": "x",
        "fields": {"stream": "stdout"},
    }


@pytest.mark.parametrize(
    "raw",
    [
        b'{"t": 1, "stream": "stdout", "line": 5}',
        b'{"t": 1, "stream": "other", "line": "x"}',
        b'{"t": 1, "stream": ["stdout"], "line": "x"}',
        b'{"t": true, "stream": "stdout", "line": "x"}',
        b'{"t": 1e9, "stream": "stdout", "line": "x"}',
        b"[" * 100_000,
        b"7",
    ],
)
def test_what_an_agent_may_have_written_there_itself_is_left_out(raw: bytes) -> None:
    """Only what has the shape of an entry is one."""
    assert parse_entry(raw) is None


def test_half_a_character_is_replaced() -> None:
    """It could not be sent on."""
    entry = parse_entry(rb'{"t": 1, "stream": "stdout", "line": "a\ud800b"}')

    assert entry is not None
    assert entry.line == "a?b"


def test_only_log_files_are_read(tmp_path: Path) -> None:
    """No link to a file of the host, no pipe, no folder, nothing without end."""
    (tmp_path / "secret").write_bytes(_raw(1, "s3cret"))
    (tmp_path / "agent.log").symlink_to(tmp_path / "secret")
    os.mkfifo(tmp_path / "agent.log.1")
    with (tmp_path / "agent.log.2").open("wb") as file:
        file.truncate(2**40)

    assert _lines(tmp_path) == []
    (tmp_path / "agent.log").unlink()
    (tmp_path / "agent.log").mkdir()
    assert _lines(tmp_path) == []


@pytest.mark.parametrize("backward", [False, True])
def test_pages_of_long_lines_are_small_and_lose_none(
    tmp_path: Path, backward: bool
) -> None:
    """Each gets past the instant that it begins at, whatever came at once."""
    lines = [f"{n} {'x' * 60_000}" for n in range(100)]
    lines += [f"{n} " + "\x01" * 60_000 for n in range(100, 120)]
    log = AgentLog(str(tmp_path / "agent.log"), wall_clock=lambda: 2.0)
    log.feed("stdout", "".join(f"{line}\n" for line in lines).encode())
    log.close()

    found: set[str] = set()
    start, before = None, -1
    while len(found) > before:
        before = len(found)
        page = read_log(tmp_path, LogQuery(start=start, backward=backward))
        assert sum(len(json.dumps(entry.line)) for entry in page) <= LARGEST_PAGE
        found |= {entry.line for entry in page}
        start = page[-1].at
    assert found == set(lines)
