"""What only the SQLite store promises: it lasts."""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.storage import Put
from ppio_agent.storage.sqlite import SqliteDocumentStore, opened, transaction


def test_documents_outlive_the_store(tmp_path: Path) -> None:
    first = SqliteDocumentStore(tmp_path / "x.db")
    first.write(Put("a", "1", {"v": 1}))
    first.close()

    second = SqliteDocumentStore(tmp_path / "x.db")
    try:
        assert [doc.body for doc in second.scan("a")] == [{"v": 1}]
    finally:
        second.close()


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "x.db")
    db.execute("PRAGMA user_version = 99")
    db.close()

    with pytest.raises(ConfigurationError, match="has schema 99"):
        SqliteDocumentStore(tmp_path / "x.db")


@pytest.mark.parametrize("body", [b"\xff{", b"[1]", b"", "text", 7])
def test_a_damaged_document_keeps_nobody_from_the_others(
    tmp_path: Path, body: object, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteDocumentStore(tmp_path / "x.db")
    store.write(Put("a", "1", {"v": 1}), Put("a", "2", {"v": 2}))
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as db:
        db.execute("UPDATE document SET body = ? WHERE id = '1'", (body,))
    try:
        assert [doc.body for doc in store.scan("a")] == [{}, {"v": 2}]
        damaged = store.get("a", "1")
        assert damaged is not None
        assert damaged.body == {}
    finally:
        store.close()
    assert "a 1 is damaged" in caplog.text


def test_a_full_disk_is_an_error_of_the_system(tmp_path: Path) -> None:
    """It is the disk's, not of this store: nothing is changed, and it goes on."""
    path = tmp_path / "x.db"
    with closing(SqliteDocumentStore(path)) as store:
        store.write(Put("a", "1", {"v": 1}))
        store._db.execute("PRAGMA max_page_count = 4")
        with pytest.raises(OSError, match="No space left") as caught:
            store.write(Put("a", "1", {"v": "x" * 100_000}))
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        document = store.get("a", "1")
    assert document is not None
    assert document.body == {"v": 1}


@pytest.mark.parametrize("said", ["database or disk is full", "disk I/O error"])
def test_a_file_on_a_full_disk_is_not_taken_for_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    full = os.statvfs_result([4096, 4096, 10, 0, 0, 10, 0, 0, 0, 255])
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with (
        pytest.raises(OSError, match="No space left") as caught,
        opened(tmp_path / "x.db"),
    ):
        raise sqlite3.OperationalError(said)
    assert caught.value.filename == str(tmp_path / "x.db")


def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path) -> None:
    """And left as it is, for whoever can still save something of it."""
    path = tmp_path / "x.db"
    damaged = bytes(range(256)) * 32
    path.write_bytes(damaged)

    with pytest.raises(ConfigurationError, match="move it away") as caught:
        SqliteDocumentStore(path)

    assert str(path) in caught.value.message
    assert path.read_bytes() == damaged


def test_a_file_that_is_damaged_later_is_an_error_of_the_system(tmp_path: Path) -> None:
    """With what to do about it: others go on with what they do not need it for."""
    path = tmp_path / "x.db"
    with closing(SqliteDocumentStore(path)) as store:
        store.write(*(Put("a", str(n), {"v": "x" * 1000}) for n in range(100)))
        store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        store._db.execute("PRAGMA shrink_memory")
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(b"x" * (path.stat().st_size - 4096))
        with pytest.raises(OSError, match="stop what uses it, and move it") as caught:
            store.scan("a")
    assert caught.value.filename == str(path)


def test_a_document_that_cannot_be_kept_is_no_damage(tmp_path: Path) -> None:
    """Nobody is to move a good file away for it."""
    with closing(SqliteDocumentStore(tmp_path / "x.db")) as store:
        with pytest.raises(sqlite3.IntegrityError):
            store.write(Put("a", None, {}))  # type: ignore[arg-type]  # a wrong one
        store.write(Put("a", "1", {}))
        assert len(store.scan("a")) == 1


def test_the_log_does_not_stay_as_large_as_one_write(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(SqliteDocumentStore(path)) as store:
        store.write(Put("a", "1", {"v": "x" * (12 << 20)}))
        assert (tmp_path / "x.db-wal").stat().st_size > 12 << 20
        for _ in range(2):  # the one after which it is begun anew, and that one
            store.write(Put("a", "1", {"v": "y"}))
        assert (tmp_path / "x.db-wal").stat().st_size <= 4 << 20


def test_a_second_process_sees_a_write_that_was_not_closed(tmp_path: Path) -> None:
    """A write lasts when it returns; a crash that follows loses nothing."""
    writer = SqliteDocumentStore(tmp_path / "x.db")
    writer.write(Put("a", "1", {}))
    reader = SqliteDocumentStore(tmp_path / "x.db")
    try:
        assert [doc.id for doc in reader.scan("a")] == ["1"]
    finally:
        reader.close()
        writer.close()


def test_what_is_kept_is_for_this_user_alone(tmp_path: Path) -> None:
    store = SqliteDocumentStore(tmp_path / "new" / "x.db")
    try:
        store.write(Put("k", "a", {"token": "secret"}))
        modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "new").iterdir()}
    finally:
        store.close()

    assert modes == {0o600}


def test_a_signal_as_a_transaction_begins_leaves_none_open(tmp_path: Path) -> None:
    """Nor does one that was left open hold up the next."""

    class Interrupting(sqlite3.Connection):
        signal = True

        def execute(self, *args: Any) -> sqlite3.Cursor:
            cursor = super().execute(*args)
            if self.signal and args[0].startswith("BEGIN"):
                self.signal = False
                raise KeyboardInterrupt
            return cursor

    with closing(
        sqlite3.connect(tmp_path / "x.db", isolation_level=None, factory=Interrupting)
    ) as db:
        with pytest.raises(KeyboardInterrupt), transaction(db):
            pass
        assert not db.in_transaction
        db.execute("BEGIN")
        with transaction(db):
            db.execute("CREATE TABLE x (y)")
        assert db.execute("SELECT * FROM x").fetchall() == []


def test_a_file_that_others_make_at_this_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever changes its mode beside another is told at once that it is locked."""
    refusals = iter(["database is locked", "database is locked"])

    class Refusing(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if "journal_mode" in sql:
                for refusal in refusals:
                    raise sqlite3.OperationalError(refusal)
            return super().execute(sql, *parameters)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Refusing))
    with closing(SqliteDocumentStore(tmp_path / "new.db")) as store:
        store.write(Put("k", "1", {"a": 1}))
    assert next(refusals, None) is None
