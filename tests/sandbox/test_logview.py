"""Reading logs: files in order, torn lines left out, filters applied."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ppio_agent.sandbox.logview import (
    LogEntry,
    LogQuery,
    parse_entry,
    read_log,
    select_entries,
)


def _raw(at: int, line: str) -> bytes:
    return json.dumps({"t": at, "stream": "stdout", "line": line}).encode()


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

    assert [e.line for e in read_log(tmp_path)] == ["a", "b", "c"]
    assert list(read_log(tmp_path / "none")) == []


ENTRIES = [_entry(n, f"line {n}", "error" if n % 2 else "debug") for n in range(1, 7)]


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
def test_entries_are_filtered(query: LogQuery, found: list[int]) -> None:
    assert [e.at for e in select_entries(ENTRIES, query)] == found


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

    assert list(read_log(tmp_path)) == []
    (tmp_path / "agent.log").unlink()
    (tmp_path / "agent.log").mkdir()
    assert list(read_log(tmp_path)) == []
