"""The agent's log: lines of bounded length in files of bounded size."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.sandbox.logs import AgentLog, LineSplitter, RotatingFile, Tail


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut `data` at these places."""
    ends = sorted({min(place, len(data)) for place in places} | {len(data)})
    return [data[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def split(pieces: list[bytes], max_line: int) -> list[str]:
    """Feed pieces to one splitter and return all lines."""
    splitter = LineSplitter(max_line)
    return [*(line for p in pieces for line in splitter.feed(p)), *splitter.finish()]


@settings(max_examples=100)
@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\r\n")), max_size=8),
    places=st.lists(st.integers(0, 200), max_size=8),
)
def test_lines_come_out_as_they_went_in_however_they_are_cut(
    lines: list[str], places: list[int]
) -> None:
    """Neither a piece's end nor a character across two pieces shows in the lines."""
    data = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")

    found = split(cut(data, places), 64 * 1024)

    assert data.decode().split("\n")[:-1] == found


@settings(max_examples=100)
@given(
    text=st.text(st.characters(exclude_characters="\r\n", codec="utf-8")),
    max_line=st.integers(4, 12),
    places=st.lists(st.integers(0, 100), max_size=6),
)
def test_long_lines_are_split_and_nothing_is_lost(
    text: str, max_line: int, places: list[int]
) -> None:
    """Pieces have at most the size, cut no character, and add up to the line."""
    found = split(cut(f"{text}\n".encode(), places), max_line)

    assert text == "".join(found)
    assert all(len(piece.encode()) <= max_line for piece in found)


@settings(max_examples=50)
@given(data=st.binary(max_size=300), max_line=st.integers(4, 20))
def test_any_bytes_become_text(data: bytes, max_line: int) -> None:
    """What is not UTF-8 is replaced, and no piece passes the size in bytes."""
    found = split([data], max_line)

    assert data.count(b"\n") <= len(found)
    assert all(len(piece) <= max_line for piece in found)


def test_carriage_return_before_the_end_of_a_line_is_left_out() -> None:
    """Programs that write CRLF give the same lines."""
    assert split([b"a\r\n", b"\r\nb\rc\r\n"], 64) == ["a", "", "b\rc"]


@given(pieces=st.lists(st.binary(max_size=30), max_size=10))
def test_tail_keeps_the_last_bytes(pieces: list[bytes]) -> None:
    """The tail is the end of all that was given, less cut characters."""
    tail = Tail(16)
    for piece in pieces:
        tail.feed(piece)

    assert b"".join(pieces)[-16:].decode("utf-8", "ignore") == tail.text


def test_full_files_move_aside_and_the_oldest_goes(tmp_path: Path) -> None:
    """Three files hold the newest records, each whole, each within its size."""
    path = tmp_path / "agent.log"
    log = RotatingFile(str(path), max_bytes=100, files=3)
    records = [b"%03d %s\n" % (n, b"x" * 35) for n in range(11)]  # two fit

    for record in records:
        log.write(record)
    log.close()

    assert [
        b"".join(records[10:]),
        b"".join(records[8:10]),
        b"".join(records[6:8]),
    ] == [
        path.read_bytes(),
        (tmp_path / "agent.log.1").read_bytes(),
        (tmp_path / "agent.log.2").read_bytes(),
    ]
    assert {"agent.log", "agent.log.1", "agent.log.2"} == {
        file.name for file in tmp_path.iterdir()
    }


def test_a_file_of_an_earlier_run_is_gone_on_with(tmp_path: Path) -> None:
    """Opening does not cut what is there."""
    path = tmp_path / "agent.log"
    for text in (b"one\n", b"two\n"):
        log = RotatingFile(str(path))
        log.write(text)
        log.close()

    assert path.read_bytes() == b"one\ntwo\n"


def test_output_that_cannot_be_written_is_dropped(tmp_path: Path) -> None:
    """A folder that is gone stops no program; the log comes back with it."""
    path = tmp_path / "logs" / "agent.log"
    log = RotatingFile(str(path))

    log.write(b"lost\n")
    path.parent.mkdir()
    log.write(b"kept\n")
    log.close()

    assert path.read_bytes() == b"kept\n"


@pytest.mark.parametrize("what", ["pipe", "link", "folder"])
@pytest.mark.parametrize("name", ["agent.log", "agent.log.1"])
def test_output_goes_to_files_only(tmp_path: Path, name: str, what: str) -> None:
    """An agent may put anything in their place: nobody waits, nothing is followed."""
    path, target = tmp_path / "agent.log", tmp_path / "target"
    log = RotatingFile(str(path), max_bytes=8, files=3)
    log.write(b"first\n")
    (tmp_path / name).unlink(missing_ok=True)
    if what == "pipe":
        os.mkfifo(tmp_path / name)
    elif what == "link":
        (tmp_path / name).symlink_to(target)
    else:
        (tmp_path / name).mkdir()
    for _ in range(9):
        log.write(b"more\n")
    log.close()

    assert not target.exists()
    for file in tmp_path.iterdir():
        assert not file.is_file() or file.stat().st_size <= 8


def test_a_pipe_that_is_read_gets_nothing(tmp_path: Path) -> None:
    """Opening it would not wait, but writing to it would."""
    path = tmp_path / "agent.log"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    log = RotatingFile(str(path))
    log.write(b"x" * 1_000_000)
    log.close()

    assert os.read(reader, 1) == b""
    os.close(reader)


def test_agent_log_writes_one_object_a_line_and_keeps_the_streams_apart(
    tmp_path: Path,
) -> None:
    """Unfinished lines of the two streams do not mix; the rest is written at the end."""
    path = tmp_path / "agent.log"
    log = AgentLog(str(path), wall_clock=lambda: 1.5)

    log.feed("stdout", "häl".encode())
    log.feed("stderr", b"err\n")
    log.feed("stdout", b"lo\nrest\xff")
    log.close()

    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"t": 1500, "stream": "stderr", "line": "err"},
        {"t": 1500, "stream": "stdout", "line": "hällo"},
        {"t": 1500, "stream": "stdout", "line": "rest\ufffd"},
    ]


def test_a_new_start_has_a_new_tail(tmp_path: Path) -> None:
    """The tail of an agent that is started again tells of this run only."""
    log = AgentLog(str(tmp_path / "agent.log"))
    log.feed("stdout", b"first run\n")
    log.start()
    log.note("second run")

    assert log.tail == "second run\n"
    log.close()


def test_a_note_is_no_part_of_a_line_that_the_agent_has_begun(tmp_path: Path) -> None:
    """As a prompt is, which waits for an answer."""
    path = tmp_path / "agent.log"
    log = AgentLog(str(path), wall_clock=lambda: 1.5)
    log.feed("stderr", b"Password: ")
    log.note("it is killed")
    log.feed("stderr", b"none\n")
    log.close()

    lines = [json.loads(line)["line"] for line in path.read_text().splitlines()]
    assert lines == ["it is killed", "Password: none"]


def test_instants_never_fall_and_few_lines_share_one(tmp_path: Path) -> None:
    """Half a page at most: a page that begins at one gets past it."""
    path = tmp_path / "agent.log"
    clock = iter([2.0, 1.0, 3.0])
    log = AgentLog(str(path), wall_clock=lambda: next(clock))
    for count in (1100, 1, 1):
        log.feed("stdout", b"x\n" * count)
    log.close()

    instants = [json.loads(line)["t"] for line in path.read_text().splitlines()]
    assert instants == [2000] * 500 + [2001] * 500 + [2002] * 101 + [3000]


def test_lines_that_share_an_instant_are_no_page_together(tmp_path: Path) -> None:
    """However long: as they are in the file, with what is escaped there."""
    path = tmp_path / "agent.log"
    log = AgentLog(str(path), wall_clock=lambda: 2.0)
    log.feed("stdout", b"x" * 60_000 + b"\n" * 3 + b"\x01" * 60_000 + b"\n")
    log.feed("stdout", (b"x" * 60_000 + b"\n") * 20)
    log.close()

    instants = [json.loads(line)["t"] for line in path.read_text().splitlines()]
    assert instants == [2000] * (4 + 1) + [2001] * 8 + [2002] * 8 + [2003] * 3
