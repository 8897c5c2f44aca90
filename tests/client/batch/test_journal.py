"""Journals of batches: what their lines mean, and who may use the file."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.client.batch import journal
from ppio_agent.client.batch.journal import JournalEntry, JournalState, Outcome
from ppio_agent.client.batch.journal_file import BatchJournal
from ppio_agent.exceptions import BatchJournalError
from ppio_agent.wire.models import InvocationResponse

_ENTRY = JournalEntry(digest="d" * 64, key="k1", sandbox_id="sb1")


def _outcome(result: object = "hello") -> Outcome:
    response = InvocationResponse(
        result=result,
        duration=0.5,
        metadata={"n": 1},
        request_id="r",
        sandbox_id="sb1",
        replayed=True,
        chunks=("hel", "lo"),
        extra={"session_id": "the envelope's own", "more": [None]},
    )
    return Outcome(response=response, attempts=2, elapsed=1.25)


def _plain(text: str) -> str:
    return text


def _lines(text: bytes) -> list[bytes]:
    return text.splitlines(keepends=True)


class TestLines:
    def test_an_answer_comes_back_as_it_was(self) -> None:
        """Its local members and those that the shape does not name included."""
        line = journal.format_done(3, _outcome(), _plain)

        assert journal.parse_done(line) == _outcome()
        assert line.count(b"\n") == 1

    @settings(max_examples=60)
    @given(st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
        | st.text(st.characters()),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=12,
    ))  # fmt: skip
    def test_any_result_comes_back(self, result: object) -> None:
        """Whatever has a JSON form, lone surrogates included."""
        line = journal.format_done(0, _outcome(result), _plain)

        assert journal.parse_done(line).response.result == result

    def test_secrets_are_hidden_at_any_depth(self) -> None:
        """The line can be read all the same, whatever stands before the secret."""
        result = {"echo": ["\nsk-secret", {"sk-secret": 1}]}
        hide: Callable[[str], str] = lambda text: text.replace("nsk-", "?").replace(  # noqa: E731 - shorter than a function
            "sk-secret", "***"
        )
        line = journal.format_done(0, _outcome(result), hide)

        assert b"secret" not in line
        hidden = journal.parse_done(line).response.result
        assert hidden == {"echo": ["\n***", {"***": 1}]}

    @pytest.mark.parametrize(
        "line", [b"{}", b"[]", b"no", b'{"done":1,"response":{"odd":1}}', b"[" * 9999]
    )
    def test_what_is_no_answer_is_refused(self, line: bytes) -> None:
        """With the error of journals."""
        with pytest.raises(BatchJournalError):
            journal.parse_done(line)


_STEPS = st.lists(
    st.tuples(st.sampled_from(["start", "done", "failed"]), st.integers(0, 3)),
    max_size=12,
)


def _journal(steps: list[tuple[str, int]]) -> tuple[bytes, dict[int, str]]:
    """Return a journal's text and the last word on each item."""
    text = journal.format_header("tpl1", "b1")
    last: dict[int, str] = {}
    for word, index in steps:
        if word == "start":
            text += journal.format_start(index, _ENTRY)
        elif index not in last:
            continue
        elif word == "done":
            text += journal.format_done(index, _outcome(), _plain)
        else:
            text += journal.format_failed(index)
        last[index] = word
    return text, last


def _words(state: JournalState) -> dict[int, str]:
    return {
        index: "done" if entry.done else "start" if entry.sandbox_id else "failed"
        for index, entry in state.entries.items()
    }


class TestState:
    @settings(max_examples=100)
    @given(_STEPS)
    def test_is_the_last_word_on_each_item(self, steps: list[tuple[str, int]]) -> None:
        """And where its answer is."""
        text, last = _journal(steps)
        state = journal.parse_journal(_lines(text))

        assert state is not None
        assert (state.template_id, state.batch_id) == ("tpl1", "b1")
        assert state.size == len(text)
        assert _words(state) == last
        for entry in state.entries.values():
            if entry.done is not None:
                offset, size = entry.done
                assert journal.parse_done(text[offset : offset + size]) == _outcome()

    @settings(max_examples=25)
    @given(_STEPS)
    def test_of_a_journal_cut_anywhere_is_that_of_its_whole_lines(
        self, steps: list[tuple[str, int]]
    ) -> None:
        """At every byte: never an error, never half a line."""
        text, _ = _journal(steps)
        for cut in range(len(text)):
            whole = text[: text[:cut].rfind(b"\n") + 1]
            state = journal.parse_journal(_lines(text[:cut]))

            assert state == journal.parse_journal(_lines(whole))
            assert (state is None) == (not whole)
            assert state is None or state.size == len(whole)

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            (b"\n", "line 2: a line is not JSON"),
            (b"\0\0\0\n", "line 2"),
            (b'{"note":1}\n', "line 2: it is no line of a batch journal"),
            (b'{"start":-1,"sha256":"","key":"","sandbox":""}\n', "whole number"),
            (b'{"start":0,"sha256":"","key":7,"sandbox":""}\n', "key has to be a text"),
            (b'{"done":5}\n', "item 5 ends without a start"),
        ],
    )
    def test_of_a_damaged_journal_is_refused(self, line: bytes, why: str) -> None:
        """With the number of the line and what is wrong with it."""
        with pytest.raises(BatchJournalError, match=why):
            journal.parse_journal([journal.format_header("t", "b"), line])

    @pytest.mark.parametrize(
        "text", [b"my notes\n", b"my notes", b"{}\n", b'{"journal":"ppio-batch","v'[:-1]
                 + b"w", b'{"journal":"ppio-batch","version":2,"a":1}\n']
    )  # fmt: skip
    def test_of_another_file_is_refused(self, text: bytes) -> None:
        """Also if it has but one line and that has no end."""
        with pytest.raises(BatchJournalError, match="line 1: it is no batch journal"):
            journal.parse_journal(_lines(text))


def _open(path: Path, template_id: str = "tpl1") -> BatchJournal:
    return BatchJournal(path, template_id, _plain)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "batch.jsonl"


class TestFile:
    def test_is_private_and_goes_on_where_it_was(self, path: Path) -> None:
        """A torn last line is cut off."""
        first = _open(path)
        first.start(0, _ENTRY)
        first.sync(first.done(0, _outcome()))
        first.start(1, _ENTRY)
        first.close()
        with path.open("ab") as file:
            file.write(b'{"done":1,"resp')
        path.chmod(0o644)

        second = _open(path)
        second.failed(1)
        second.close()

        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (first.resumed, second.resumed) == (False, True)
        assert second.batch_id == first.batch_id
        assert second.entries[1] == _ENTRY
        assert [sorted(json.loads(line))[0] for line in path.read_text().splitlines()] == [
            "batch", "key", "attempts", "key", "failed",
        ]  # fmt: skip

    def test_answers_are_read_when_they_are_asked_for(self, path: Path) -> None:
        """The state holds nothing but their places."""
        first = _open(path)
        first.start(0, _ENTRY)
        first.done(0, _outcome({"long": "x" * 100_000}))
        first.close()
        second = _open(path)
        where = second.entries[0].done
        assert where is not None

        assert second.answer(where).response.result == {"long": "x" * 100_000}
        path.write_bytes(b"")
        with pytest.raises(BatchJournalError, match="not JSON"):
            second.answer(where)
        second.close()
        with pytest.raises(BatchJournalError, match="reading failed"):
            second.answer(where)

    def test_belongs_to_one_batch_at_a_time(self, path: Path) -> None:
        """Within a process as between them; a closed one is free."""
        first = _open(path)
        with pytest.raises(BatchJournalError, match="another batch uses it"):
            _open(path)
        first.close()
        first.close()
        _open(path).close()

    def test_a_forked_child_does_not_hold_it(self, path: Path) -> None:
        """Else a child that lives on would lock out the rerun."""
        first = _open(path)
        waits, goes = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(waits, 1)
            os._exit(0)
        first.close()
        try:
            _open(path).close()
        finally:
            os.write(goes, b"x")
            os.waitpid(child, 0)
            os.close(waits)
            os.close(goes)

    def test_of_another_template_is_refused(self, path: Path) -> None:
        """And left as it was."""
        _open(path).close()
        before = path.read_bytes()
        with pytest.raises(BatchJournalError, match="of template tpl1, not tpl2"):
            _open(path, "tpl2")

        assert path.read_bytes() == before

    def test_what_is_no_journal_is_left_alone(self, tmp_path: Path) -> None:
        """Text, a folder, a pipe, a folder that is not there, one without rights."""
        notes = tmp_path / "notes.txt"
        notes.write_text("mine")
        os.mkfifo(tmp_path / "pipe")
        for name in ("notes.txt", "pipe", "", "nowhere/batch.jsonl"):
            with pytest.raises(BatchJournalError, match="cannot be used"):
                _open(tmp_path / name)

        assert notes.read_text() == "mine"

    def test_a_full_disk_ends_it(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No line follows the torn one; a later run reads what is whole."""
        batch = _open(path)
        batch.start(0, _ENTRY)
        write = os.write

        def full(fd: int, data: bytes) -> int:
            if len(data) < 40:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(fd, bytes(data[:40]))

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(BatchJournalError, match="No space left"):
            batch.start(1, _ENTRY)
        monkeypatch.undo()
        with pytest.raises(BatchJournalError, match="No space left"):
            batch.failed(0)
        batch.close()

        again = _open(path)
        again.close()
        assert list(again.entries) == [0]

    def test_many_answers_cost_one_sync(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever syncs does so for all that was written before."""
        batch = _open(path)
        calls: list[int] = []
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(fd), fsync(fd)))
        tickets = []
        for index in range(64):
            batch.start(index, _ENTRY)
            tickets.append(batch.done(index, _outcome()))
        for ticket in tickets:
            batch.sync(ticket)
        batch.close()

        assert len(calls) == 1

    def test_lines_of_many_threads_stay_whole(self, path: Path) -> None:
        """However long they are."""
        batch = _open(path)
        long = _outcome("x" * 50_000)

        def write(first: int) -> None:
            for index in range(first, first + 10):
                batch.start(index, _ENTRY)
                batch.done(index, long)

        threads = [threading.Thread(target=write, args=(n * 10,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        batch.close()

        again = _open(path)
        again.close()
        assert all(entry.done for entry in again.entries.values())
        assert len(again.entries) == 80
