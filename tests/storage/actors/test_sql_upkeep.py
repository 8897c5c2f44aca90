"""What is too old or too much in SQL is forgotten, and nothing besides."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from ppio_agent._util.ids import new_id
from ppio_agent.storage.actors import sql_upkeep as upkeep
from ppio_agent.storage.actors import sql_workers as workers
from ppio_agent.storage.actors.records import (
    Lease,
    Limits,
    RequestRecord,
    Retention,
    SetValue,
    TurnCommit,
)
from ppio_agent.storage.actors.sqlite import SqliteActorStore
from ppio_agent.wire.actors import ActorId, RequestStatus

ACTOR = ActorId("echo", "c-1")
_ROWS = "SELECT actor, worker FROM actor"

Open = Callable[[], SqliteActorStore]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "actors.db"


@pytest.fixture
def open_store(path: Path) -> Iterator[Open]:
    """Open stores of one file, which are closed after the test."""
    with ExitStack() as stores:
        yield lambda: stores.enter_context(closing(SqliteActorStore(path)))


def leased(store: SqliteActorStore, actor_id: ActorId = ACTOR) -> Lease:
    store.heartbeat("w", 600.0)
    lease = store.claim("w", actor_id)
    assert lease is not None
    return lease


def end(store: SqliteActorStore, lease: Lease, id: str = "", **fields: Any) -> None:
    """End a request that nobody knew before."""
    record = RequestRecord(ACTOR, id or new_id(), method="run")
    fields = {"status": RequestStatus.COMPLETED, "request": record, **fields}
    store.commit(lease, TurnCommit(message_id=record.message_id, **fields))


def test_two_that_purge_at_once_forget_what_is_old_once(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that is to be kept, though it comes next."""
    store, peer = open_store(), open_store()
    lease = leased(store)
    now = store.now()
    monkeypatch.setattr(store, "now", lambda: now - 100_000.0)
    ids = [new_id() for _ in range(10)]
    for number, id in enumerate(ids):
        if number == 5:
            monkeypatch.undo()
        end(store, lease, id, dead="x")
    real = upkeep.spare

    def spare(*args: Any) -> Any:
        found = real(*args)
        monkeypatch.undo()
        peer.purge(now, 100, Retention(dead_seconds=50_000.0))
        return found

    monkeypatch.setattr(upkeep, "spare", spare)
    store.purge(now, 100, Retention(dead_seconds=50_000.0))
    assert [id for id in ids if store.get_request(ACTOR, id)] == ids[5:]
    assert len(store.dead_letters(100)) == 5


def test_a_request_that_came_again_is_not_forgotten(open_store: Open) -> None:
    """Nor its result, when the one of that id was found before was to go."""
    store = open_store()
    store.accept(RequestRecord(ACTOR, "m1"), Limits())
    old = [(str(ACTOR), "m1", 1.0)]
    store._write(lambda session: upkeep.forget_requests(session, old))
    store._write(lambda session: upkeep.evict(session, old))
    record = store.get_request(ACTOR, "m1")
    assert record is not None
    assert not record.evicted


def test_what_is_too_much_is_forgotten_in_pages(open_store: Open) -> None:
    """Of results, too; each transaction keeps others from writing for a moment."""
    store = open_store()
    lease = leased(store)
    for _ in range(20):
        end(store, lease, data=b"1" * 100)
    retention = Retention(payload_bytes=500)
    counts = [store.purge(store.now(), 4, retention) for _ in range(5)]
    assert counts == [4, 4, 4, 3, 0]


def test_nothing_is_left_of_a_dead_worker(path: Path, open_store: Open) -> None:
    """Neither its name nor actors that it alone kept."""
    with closing(SqliteActorStore(path)) as dead:
        for number in range(7):
            actor_id = ActorId("echo", str(number))
            leased(dead, actor_id)
        dead.write(ACTOR, [SetValue("k", b"1")])
        leased(dead)
    store = open_store()
    assert store.ready("other", 10) == []
    seen = store.inspect(ACTOR)
    assert seen is not None
    assert seen.worker is None
    counts = [store.purge(store.now(), 3, Retention()) for _ in range(4)]
    assert counts == [4, 4, 3, 0]
    assert store._read(lambda session: session.all(_ROWS, {})) == [(str(ACTOR), None)]
    assert store._read(workers.known) == []


def test_a_dead_worker_is_seen_by_all_until_its_leases_are_free(
    path: Path, open_store: Open
) -> None:
    """Whoever finds it may be killed before they are."""
    store = open_store()
    with closing(SqliteActorStore(path)) as dead:
        dead.accept(RequestRecord(ACTOR, "m1"), Limits())
        leased(dead)
    write = store._write
    store._write = _fail  # type: ignore[method-assign]
    with pytest.raises(OSError, match="full"):
        store.ready("other", 10)
    store._write = write  # type: ignore[method-assign]
    assert store.ready("other", 10) == [ACTOR]
    assert not list(path.parent.glob("*.lock"))


def _fail(_: object) -> None:
    raise OSError("the disk is full")


def test_what_came_too_late_leaves_nothing(open_store: Open) -> None:
    """A reminder or a deadline that another process has seen to."""
    store = open_store()
    now = store.now()
    assert not store._write(lambda s: upkeep.fire(s, now, ACTOR, "gone"))
    assert store._write(lambda s: upkeep.expire(s, now, ACTOR, "gone")) is None
    assert store._read(lambda session: session.all(_ROWS, {})) == []


def test_an_owner_that_comes_again_is_kept(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though there is nothing else of the actor."""
    store = open_store()
    now = store.now()
    store.own(ACTOR, "anna")
    monkeypatch.setattr(store, "now", lambda: now + 80_000.0)
    store.own(ACTOR, "anna")
    store.purge(now + 90_000.0, 100, Retention())
    assert store.owner(ACTOR) == "anna"


def test_a_heartbeat_that_had_to_wait_counts_from_its_end(
    open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does a claim: others' time may have passed meanwhile."""
    store = open_store()
    now = store.now()
    monkeypatch.setattr(store, "now", lambda: now)
    write = store._write

    def late(work: Callable[[Any], Any]) -> Any:
        nonlocal now
        now += 10.0
        return write(work)

    monkeypatch.setattr(store, "_write", late)
    store.heartbeat("w", 15.0)  # from 10 to 25
    monkeypatch.setattr(store, "_write", write)
    now += 10.0
    assert store.claim("w", ACTOR) is not None
    assert store.claim("other", ACTOR) is None
    monkeypatch.setattr(store, "_write", late)
    assert store.claim("other", ACTOR) is not None
