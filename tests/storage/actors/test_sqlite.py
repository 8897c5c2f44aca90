"""Actors in an SQLite file: the contract, and what only such a file has to bear."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import (
    ConfigurationError,
    LeaseLostError,
    ServiceUnavailableError,
    ValidationError,
)
from ppio_agent.storage.actors import open_actor_store
from ppio_agent.storage.actors.group_commit import Job
from ppio_agent.storage.actors.records import (
    Acceptance,
    CommitOutcome,
    Lease,
    Limits,
    RequestRecord,
    SetValue,
    TurnCommit,
)
from ppio_agent.storage.actors.sqlite import SqliteActorStore
from ppio_agent.testing.actor_store import ActorStoreContract
from ppio_agent.wire.actors import ActorId, RequestStatus
from tests.support import SLOW, wait_until

from .support_worker import count_turn

ACTOR = ActorId("echo", "c-1")
LIMITS = Limits(mailbox=1000)

Open = Callable[[], SqliteActorStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "actors.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[Open]:
    """Open stores of one file, which are closed after the test."""
    with ExitStack() as stores:
        yield lambda: stores.enter_context(closing(SqliteActorStore(path)))


class TestContract(ActorStoreContract):
    """`SqliteActorStore` does what every store does, beside another process."""

    @pytest.fixture
    def store(self, open_store: Open) -> SqliteActorStore:
        return open_store()

    @pytest.fixture
    def peer(self, open_store: Open, store: SqliteActorStore) -> SqliteActorStore:
        return open_store()


def request(number: int = 1, actor_id: ActorId = ACTOR, **fields: str) -> RequestRecord:
    return RequestRecord(actor_id, f"m{number}", **fields)


def ask(store: SqliteActorStore, lease: Lease, **fields: object) -> CommitOutcome:
    """Commit a turn together with its request."""
    record = RequestRecord(lease.actor_id, new_id(), method="run")
    return store.commit(
        lease,
        TurnCommit(
            message_id=record.message_id,
            status=RequestStatus.COMPLETED,
            request=record,
            state=[SetValue("k", b"1")],
            **fields,
        ),
    ).outcome


def leased(store: SqliteActorStore, actor_id: ActorId = ACTOR) -> Lease:
    store.heartbeat("w", 600.0)
    lease = store.claim("w", actor_id)
    assert lease is not None
    return lease


# The file.


def test_actors_outlive_the_store(path: Path) -> None:
    with closing(open_actor_store(f"sqlite:///{path}")) as first:
        first.accept(request(), LIMITS)
        first.write(ACTOR, [SetValue("k", b"1")])
    with closing(open_actor_store(f"sqlite:///{path}?sync=full")) as second:
        assert second.read(ACTOR).values == {"k": b"1"}
        assert second.ready("w", 10) == [ACTOR]


def test_files_are_for_this_user_alone(path: Path, open_store: Open) -> None:
    """What people said to agents is in them."""
    open_store().heartbeat("w/1", 60.0)
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in _beside(path)}
    assert modes == dict.fromkeys(
        ("actors.db", "actors.db-shm", "actors.db-wal", "actors.db.w%2F1.lock"), 0o600
    )


def _beside(path: Path) -> list[Path]:
    return list(path.parent.iterdir())


def test_a_file_of_a_newer_version_is_refused(path: Path, open_store: Open) -> None:
    open_store()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE actor_meta SET value = 99")
    with pytest.raises(ConfigurationError, match="has schema 99"):
        SqliteActorStore(path)


def test_a_damaged_file_is_refused(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigurationError, match="cannot be used"):
        SqliteActorStore(path)


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite:///x?sync=off", "sqlite:///x?snyc=full", "sqlite:///"]
)
def test_urls_that_cannot_be_used(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match="sync"):
        open_actor_store(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sync", "level"), [("normal", 1), ("full", 2)])
def test_how_safe_a_commit_is_is_said(path: Path, sync: str, level: int) -> None:
    with closing(SqliteActorStore(path, sync=sync)) as store:
        assert store._writer.execute("PRAGMA synchronous").fetchone() == (level,)


def test_a_full_disk_is_an_error_of_the_system(open_store: Open) -> None:
    """Of all who wrote together; nothing of it is kept, and the store goes on."""
    store = open_store()
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages + 4}")
    with pytest.raises(OSError, match="No space left") as caught:
        store.write(ACTOR, [SetValue("k", b"x" * 100_000)])
    assert caught.value.errno == errno.ENOSPC
    assert store.read(ACTOR).values == {}
    assert store.write(ACTOR, [SetValue("k", b"1")]).success


def test_others_that_write_for_too_long_are_told_of(
    path: Path, open_store: Open
) -> None:
    store = open_store()
    store._writer.execute("PRAGMA busy_timeout = 50")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(ServiceUnavailableError, match="other processes"):
            store.accept(request(), LIMITS)
        assert store.get_request(ACTOR, "m1") is None
        other.execute("ROLLBACK")
    assert store.accept(request(), LIMITS).outcome is Acceptance.NEW


def test_a_file_that_is_damaged_later_is_an_error_of_the_system(
    path: Path, open_store: Open
) -> None:
    store = open_store()
    store.write(ACTOR, [SetValue(str(n), b"x" * 1000) for n in range(100)])
    store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(2048)
        file.write(b"\xff" * (path.stat().st_size - 2048))
    store._reader.execute("PRAGMA shrink_memory")  # what it has read before
    with pytest.raises(OSError, match="malformed") as caught:
        store.read(ACTOR)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_is_removed_while_in_use_is_noticed(
    path: Path, open_store: Open, caplog: pytest.LogCaptureFixture, *, replaced: bool
) -> None:
    """Two runtimes would keep different states, and neither would know."""
    store = open_store()
    away = path.rename(path.with_name("away"))
    if replaced:
        path.touch()
    for _ in range(2):
        with pytest.raises(ServiceUnavailableError, match="removed or replaced"):
            store.accept(RequestRecord(ACTOR, new_id()), LIMITS)
        with pytest.raises(ServiceUnavailableError, match="removed or replaced"):
            store.read(ACTOR)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    away.rename(path)
    accepted = store.accept(RequestRecord(ACTOR, new_id()), LIMITS)
    assert accepted.outcome is Acceptance.NEW


def test_a_fork_waits_for_a_statement(path: Path, open_store: Open) -> None:
    """It would leave the child with a lock of SQLite's that nobody frees."""
    store = open_store()
    begun, go_on, forked = (threading.Event() for _ in range(3))

    def work(_session: Any) -> None:
        begun.set()
        go_on.wait(0.1)
        assert not forked.is_set()

    writer = threading.Thread(target=store._write, args=(work,))
    writer.start()
    assert begun.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if not store._writing.locked() else 1)
    forked.set()
    writer.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_text_that_cannot_be_kept_is_refused(open_store: Open) -> None:
    """Alone, and it is not told."""
    store = open_store()
    with pytest.raises(ValidationError, match="half a character") as caught:
        store.accept(request(method="secret\ud800"), LIMITS)
    assert "secret" not in str(caught.value)
    assert store.inspect(ACTOR) is None
    store.accept(request(), LIMITS)
    with pytest.raises(ValidationError):
        store.read(ACTOR, ["\ud800"])


def test_a_store_that_was_closed_says_so(path: Path) -> None:
    """A sweep may come late."""
    store = SqliteActorStore(path)
    store.close()
    store.close()
    with pytest.raises(ServiceUnavailableError, match="was closed"):
        store.accept(request(), LIMITS)
    with pytest.raises(ServiceUnavailableError, match="was closed"):
        store.pending()


def test_several_make_the_file_at_once(path: Path) -> None:
    """Processes that start together do not stand in each other's way."""
    command = [
        sys.executable,
        "-m",
        f"{__package__}.support_worker",
        f"sqlite:///{path}",
    ]
    workers = [
        subprocess.Popen([*command, f"w{n}", "30"], stdin=subprocess.PIPE)
        for n in range(3)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
        assert worker.wait(30.0 * SLOW) == 0
    assert not list(path.parent.glob("*.lock"))


# Threads.


def test_of_those_who_commit_together_one_fails_alone(open_store: Open) -> None:
    """One has lost its lease, and the others do not notice."""
    store = open_store()
    actors = [ActorId("echo", str(n)) for n in range(8)]
    leases = [leased(store, actor_id) for actor_id in actors]
    leased(store, actors[3])
    outcomes = _all_at_once(store, [lambda at=at: ask(store, at) for at in leases])
    assert isinstance(outcomes.pop(3), LeaseLostError)
    assert outcomes == [CommitOutcome.COMMITTED] * 7
    kept = [store.read(actor_id).values for actor_id in actors]
    assert kept == [*[{"k": b"1"}] * 3, {}, *[{"k": b"1"}] * 4]


def test_of_those_who_commit_together_all_see_a_full_disk(open_store: Open) -> None:
    store = open_store()
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages + 20}")

    def write(number: int) -> object:
        return store.write(ACTOR, [SetValue(str(number), b"x" * 20_000)])

    outcomes = _all_at_once(store, [lambda n=n: write(n) for n in range(6)])
    assert [getattr(error, "errno", None) for error in outcomes] == [errno.ENOSPC] * 6
    assert store.read(ACTOR).values == {}


def _all_at_once(
    store: SqliteActorStore, works: list[Callable[[], object]]
) -> list[object]:
    """Run works in one transaction; return what came of each."""
    outcomes: dict[int, object] = {}

    def run(number: int) -> None:
        try:
            outcomes[number] = works[number]()
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(works))]
    with _led(store):
        for number, thread in enumerate(threads):
            thread.start()
            wait_until(lambda: len(store._group._waiting) > number)  # noqa: B023
    for thread in threads:
        thread.join()
    return [outcomes[number] for number in range(len(works))]


@contextmanager
def _led(store: SqliteActorStore) -> Iterator[None]:
    """Let whoever writes wait for a transaction until the block ends."""
    go_on, leads = threading.Event(), threading.Event()

    def lead(_: object) -> None:
        leads.set()
        go_on.wait(30.0)

    leader = threading.Thread(target=store._write, args=(lead,))
    leader.start()
    leads.wait(30.0)
    yield
    go_on.set()
    leader.join()


def test_turns_do_not_cost_more_the_more_there_were(open_store: Open) -> None:
    """Counted in steps of the database's machine, which do not depend on the load."""
    store = open_store()
    lease = leased(store)
    numbers = iter(range(10_000))

    def turn() -> int:
        steps = 0

        def count() -> None:
            nonlocal steps
            steps += 1

        store._writer.set_progress_handler(count, 1)
        try:
            number = next(numbers)
            store.accept(request(number), LIMITS)
            record = store.take(lease).record
            assert record is not None
            store.commit(lease, count_turn(store, record))
            ask(store, lease)
            store.cancellations("w")
        finally:
            store._writer.set_progress_handler(None, 0)
        return steps

    first = [turn() for _ in range(10)][-1]
    for _ in range(400):
        ask(store, lease)
    assert turn() < 1.5 * first


class Interrupting:
    """A connection; a signal comes as a statement returns."""

    def __init__(self, db: sqlite3.Connection, *statements: str) -> None:
        self.db = db
        self.left = list(statements)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.db, name)

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        if self.left and self.left[0] == statement == "ROLLBACK":
            self.left.pop(0)  # another one, before it is run
            raise KeyboardInterrupt
        cursor = self.db.execute(statement, *values)
        if self.left and self.left[0] == statement:
            self.left.pop(0)
            raise KeyboardInterrupt
        return cursor


@pytest.mark.parametrize("statements", [("BEGIN IMMEDIATE",), ("COMMIT",)])
def test_a_signal_leaves_no_transaction_open(
    path: Path, open_store: Open, statements: tuple[str, ...]
) -> None:
    """Nobody else could write any more."""
    store = open_store()
    writer = store._writer
    store._writer = Interrupting(writer, *statements)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        store.accept(request(), LIMITS)
    assert not writer.in_transaction
    known = statements == ("COMMIT",)
    assert (open_store().get_request(ACTOR, "m1") is not None) is known
    assert open_store().accept(request(2), LIMITS).outcome is Acceptance.NEW


def test_a_signal_while_one_is_seen_to_is_made_good_later(open_store: Open) -> None:
    """By the next transaction."""
    store = open_store()
    signals = ("BEGIN IMMEDIATE", "ROLLBACK")
    store._writer = Interrupting(store._writer, *signals)  # type: ignore[assignment]
    store._reader = Interrupting(store._reader, "BEGIN", "ROLLBACK")  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        store.accept(request(), LIMITS)
    with pytest.raises(KeyboardInterrupt):
        store.pending()
    assert store.accept(request(), LIMITS).outcome is Acceptance.NEW
    assert store.pending() == 1


def test_one_that_fails_costs_two_transactions(open_store: Open) -> None:
    """Whoever was in one with it waits for no more."""
    store = open_store()
    actors = [ActorId("echo", str(n)) for n in range(20)]
    leases = [leased(store, actor_id) for actor_id in actors]
    leased(store, actors[3])
    statements: list[str] = []
    store._writer.set_trace_callback(statements.append)
    outcomes = _all_at_once(store, [lambda at=at: ask(store, at) for at in leases])
    store._writer.set_trace_callback(None)
    assert outcomes.count(CommitOutcome.COMMITTED) == 19
    assert statements.count("BEGIN IMMEDIATE") == 3  # one of them is `_led`'s
    assert statements.count("COMMIT") == 2


def test_what_is_too_large_for_the_disk_fails_alone(open_store: Open) -> None:
    store = open_store()
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages + 60}")
    sizes = [10, 3_000_000, 10]
    works = [
        lambda n=n: store.write(ActorId("echo", str(n)), [SetValue("k", b"1" * n)])
        for n in sizes
    ]
    outcomes = _all_at_once(store, works)
    assert [getattr(one, "errno", 0) for one in outcomes] == [0, errno.ENOSPC, 0]


def test_those_who_fail_together_have_an_error_each(
    path: Path, open_store: Open
) -> None:
    """Raised by several threads, one would tell of all of them."""
    store = open_store()
    store._writer.execute("PRAGMA busy_timeout = 10")
    jobs: list[Job[Any]] = [Job(lambda session: session) for _ in range(3)]
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store._run_jobs(jobs)
    assert all(isinstance(job.error, ServiceUnavailableError) for job in jobs)
    assert len({id(job.error) for job in jobs}) == 3


# Processes that were killed.


@contextmanager
def _worker(path: Path, name: str, *mode: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs turns; its leases last for ten minutes."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", f"{__package__}.support_worker"),
            *(f"sqlite:///{path}", name, "600", *mode),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_worker_is_known_to_be_dead_at_once(
    path: Path, open_store: Open
) -> None:
    """Nobody waits for the ten minutes that its leases would last."""
    store = open_store()
    store.accept(request(), LIMITS)
    store.heartbeat("w", 600.0)
    with _worker(path, "killed", "pause") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        assert store.ready("w", 10) == []
        assert store.claim("w", ACTOR) is None
        process.kill()
        process.wait()
    lease = store.claim("w", ACTOR)
    assert lease is not None
    record = store.take(lease).record
    assert record is not None
    assert record.attempt == 2
    assert not list(path.parent.glob("*killed*"))


def test_a_stopped_worker_is_not_dead(path: Path, open_store: Open) -> None:
    """It would go on; what it says once its time has passed is refused."""
    store = open_store()
    store.accept(request(), LIMITS)
    with _worker(path, "stopped", "pause") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "taken\n"
        process.send_signal(signal.SIGSTOP)
        assert store.claim("w", ACTOR) is None
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("UPDATE actor_worker SET expires_at = 0 WHERE id = 'stopped'")
        lease = store.claim("w", ACTOR)
        assert lease is not None
        record = store.take(lease).record
        assert record is not None
        process.send_signal(signal.SIGCONT)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "lost\n"
    store.commit(lease, count_turn(store, record))
    assert store.read(ACTOR).values == {"count": b"1"}


def test_a_forked_child_does_not_keep_its_dead_parent_alive(path: Path) -> None:
    """The child has nothing of the parent's lock."""
    with closing(SqliteActorStore(path)) as store:
        store.heartbeat("parent", 600.0)
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:  # lives until the pipe is closed
            os.close(write_end)
            os.read(read_end, 1)
            os._exit(0)
        os.close(read_end)
    try:  # the store is closed without a word
        with closing(SqliteActorStore(path)) as other:
            # The child lets go as soon as it runs.
            wait_until(lambda: other._locks.is_dead("parent"))
    finally:
        os.close(write_end)
        os.waitpid(child, 0)


def test_what_was_accepted_is_done_once_however_often_workers_are_killed(
    path: Path, open_store: Open
) -> None:
    """Killed at any instant, and none of what they sent to others is lost or doubled."""
    store = open_store()
    actors = [ActorId("source", str(n)) for n in range(4)]
    sent = 0
    for _ in range(5):
        with _worker(path, new_id()) as process:
            for actor_id in actors:
                for _ in range(10):
                    sent += 1
                    record = request(sent, actor_id, method="forward")
                    assert store.accept(record, LIMITS).outcome is Acceptance.NEW
            before = store.pending()
            wait_until(lambda: store.pending() < before - 10)  # noqa: B023
            process.kill()
    with _worker(path, "last"):
        wait_until(
            lambda: _count(store, "sink") == sent and not store.pending(),
            timeout=20.0 * SLOW,
        )
    assert _count(store, "source") == sent
    assert store.dead_letters(10) == []


def _count(store: SqliteActorStore, type_name: str) -> int:
    """Return how many turns counted in the state of actors of a type."""
    return sum(
        int(store.read(ActorId(type_name, str(n))).values.get("count", b"0"))
        for n in range(4)
    )
