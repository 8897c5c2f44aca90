"""What the memory store does beyond the contract: bounds, bytes, forks."""

from __future__ import annotations

import gc
import itertools
import os
import random
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import pytest

from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import (
    ConfigurationError,
    LeaseLostError,
    ServiceUnavailableError,
)
from ppio_agent.storage.actors import _mailboxes, open_actor_store
from ppio_agent.storage.actors.memory import InMemoryStateStorage
from ppio_agent.storage.actors.records import (
    Acceptance,
    CommitOutcome,
    HintKind,
    Lease,
    Limits,
    Outgoing,
    ProgressItem,
    RequestRecord,
    Retention,
    SetValue,
    TurnCommit,
)
from ppio_agent.storage.actors.stateonly import StateOnlyStore, as_store
from ppio_agent.testing.actor_store.base import in_threads
from ppio_agent.wire.actors import ActorId, RequestStatus
from tests.support import SLOW

from .test_contract import DictStorage

A = ActorId("echo", "c-1")


def _run(store: InMemoryStateStorage, actor_id: ActorId, data: bytes = b"1") -> str:
    """Let an actor live for one request; return its id."""
    store.heartbeat("w-1", 600.0)
    lease = store.claim("w-1", actor_id)
    assert lease is not None
    now = store.now()
    sent = RequestRecord(
        actor_id, new_id(), "run", b"{}", created_at=now, started_at=now, attempt=1
    )
    done = store.commit(
        lease,
        TurnCommit(
            message_id=sent.message_id,
            request=sent,
            status=RequestStatus.COMPLETED,
            data=data,
        ),
    )
    assert done.outcome is CommitOutcome.COMMITTED
    store.release(lease)
    return sent.message_id


def _actors(count: int) -> list[ActorId]:
    found = [ActorId("echo", f"c-{number}") for number in range(count)]
    assert len({hash(id) for id in found}) > 1  # hashes are kept in the ids
    return found


def _bytes_now() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


def test_an_idle_actor_takes_few_bytes() -> None:
    """None once it is released; with a request that has ended, some hundred."""
    store = InMemoryStateStorage()
    actors = _actors(3000)
    store.heartbeat("w-1", 600.0)
    _run(store, A)
    tracemalloc.start()
    try:
        before = _bytes_now()
        for actor_id in actors:
            lease = store.claim("w-1", actor_id)
            assert lease is not None
            store.release(lease)
        del lease
        # What is left is the room of a dictionary, which the next actors take.
        assert (_bytes_now() - before) / len(actors) < 100
        for actor_id in actors:
            _run(store, actor_id)
        assert (_bytes_now() - before) / len(actors) < 600
    finally:
        tracemalloc.stop()


def test_the_bounds_hold_without_a_purge() -> None:
    """They are those of the latest one; some few more are not counted at once."""
    store = InMemoryStateStorage()
    store.purge(store.now(), 100, Retention(ids=5, payload_bytes=250, dead_letters=2))
    ids = [_run(store, A, b'"%b"' % (b"x" * 98)) for _ in range(1000)]
    records = [store.get_request(A, id) for id in ids]
    known = [record for record in records if record is not None]
    assert records[-len(known) :] == known
    assert 5 <= len(known) < 5 + 64
    assert sum(not record.evicted for record in known) < 2 + 64
    large = [_run(store, A, b'"%b"' % (b"x" * 100_000)) for _ in range(3)]
    assert [(store.get_request(A, id) or known[0]).evicted for id in large] == [
        True
    ] * 3
    for id in "abc":
        failed = RequestRecord(A, id, "run")
        lease = store.claim("w-1", A)
        assert lease is not None
        turn = TurnCommit(
            message_id=id, request=failed, status=RequestStatus.FAILED, dead="crash"
        )
        store.commit(lease, turn)
    assert [one.request.message_id for one in store.dead_letters(9)] == ["b", "c"]


def test_an_actor_is_forgotten_with_its_last_request() -> None:
    """Nothing of it is left."""
    store = InMemoryStateStorage()
    _run(store, A)
    assert store.inspect(A) is not None
    while store.purge(store.now() + 1e6, 100, Retention()):
        pass
    assert store.inspect(A) is None


def test_an_owner_is_forgotten_with_its_actor() -> None:
    """A while after the last request, not before."""
    store = InMemoryStateStorage()
    store.own(A, "anna")
    _run(store, A)
    retention = Retention(seconds=100.0)
    store.purge(store.now() + 90.0, 100, retention)
    assert store.owner(A) == "anna"
    store.purge(store.now() + 200.0, 100, retention)
    store.purge(store.now() + 400.0, 100, retention)
    assert store.owner(A) is None


def test_a_purge_tells_how_much_it_looked_at() -> None:
    """Whether it was forgotten or not, so that whoever asks in pages asks on."""
    store = InMemoryStateStorage()
    retention = Retention(seconds=100.0)
    for actor_id in _actors(3):
        store.own(actor_id, "anna")
    _run(store, A)  # the second of them
    store.write(A, [SetValue("a", b"1")])
    later = store.now() + 200.0
    looked = [store.purge(later, 2, retention) for _ in range(3)]
    assert looked == [1 + 2, 1, 0]
    assert [store.owner(id) for id in _actors(3)] == [None, "anna", None]


def test_no_end_is_set_to_a_state_that_is_empty() -> None:
    """There would be nothing to delete."""
    for store in (InMemoryStateStorage(), StateOnlyStore(DictStorage())):
        _commit_state(store, "m-1", b"")
        assert store.purge(store.now() + 20.0, 10, Retention()) == 0
        _commit_state(store, "m-2", b"1")
        assert store.purge(store.now() + 20.0, 10, Retention()) == 1
        assert store.read(A).values == {}


def _commit_state(
    store: InMemoryStateStorage, id: str, value: bytes, actor_id: ActorId = A
) -> None:
    """Let a turn write a state for ten seconds."""
    lease = store.claim("w-1", actor_id)
    assert lease is not None
    turn = TurnCommit(
        message_id=id,
        request=RequestRecord(actor_id, id),
        status=RequestStatus.COMPLETED,
        state=[SetValue("a", value)] if value else [],
        state_ttl=10.0,
    )
    assert store.commit(lease, turn).outcome is CommitOutcome.COMMITTED


def test_a_turn_that_is_taken_again_is_the_same() -> None:
    """Its answer was not heard; of another lease it is another."""
    store = InMemoryStateStorage()
    store.accept(RequestRecord(A, "m-1"), Limits())
    lease = store.claim("w-1", A)
    assert lease is not None
    taken = [store.take(lease, crash_attempts=1).record for _ in range(3)]
    assert [one and one.attempt for one in taken] == [1, 1, 1]
    other = store.claim("w-1", A)
    assert other is not None
    (ended,) = store.take(other, crash_attempts=1).ended
    assert (ended.message_id, ended.attempt) == ("m-1", 1)


def test_an_old_shelf_does_not_forget_a_new_one() -> None:
    """Whoever has the one in hand may come after the other was made."""
    boxes = InMemoryStateStorage()._boxes
    old = boxes.shelf(A)
    assert boxes.tidy(old)
    new = boxes.shelf(A)
    assert boxes.tidy(old)
    assert boxes.shelves[A] is new


def test_a_signal_amid_a_step_leaves_the_store_whole() -> None:
    """Wherever in the step it raises; whoever tries again goes on."""
    for step in itertools.count():
        store = InMemoryStateStorage()
        lease = store.claim("w-1", A)
        assert lease is not None
        with suppress(KeyboardInterrupt), _interrupted_at(step) as reached:
            _some_steps(store, lease)
        boxes = store._boxes
        shelf = boxes.shelf(A)
        kept = [shelf.kept(id) for id in shelf.ids()]
        waiting = [one for one in kept if isinstance(one, RequestRecord)]
        assert list(shelf.queue or ()) == list(boxes.pending) == waiting, step
        assert len(boxes.deadlines) == len(waiting), step
        assert all(one.status is RequestStatus.PENDING for one in waiting), step
        again = store.claim("w-1", A)
        assert again is not None
        _some_steps(store, again)
        assert store.pending() == len(boxes.deadlines) == 0
        if not reached:
            return


def _some_steps(store: InMemoryStateStorage, lease: Lease) -> None:
    deadline = store.now() + 100.0
    for id in ("m-1", "m-2", "m-3"):
        store.accept(RequestRecord(A, id, deadline=deadline), Limits())
    store.cancel(A, "m-3")
    record = store.take(lease).record
    while record is not None:
        turn = TurnCommit(message_id=record.message_id, status=RequestStatus.COMPLETED)
        taken = store.commit(lease, turn).taken
        record = None if taken is None else taken.record


@contextmanager
def _interrupted_at(step: int) -> Iterator[list[int]]:
    """Raise as a signal does, at one line of what works on mailboxes."""
    left, reached = itertools.count(step, -1), []

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if frame.f_code.co_filename != _mailboxes.__file__:
            return None
        if event == "line" and next(left) == 0:
            sys.settrace(before)
            reached.append(step)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield reached
    finally:
        sys.settrace(before)


def test_an_eviction_does_not_change_what_was_returned() -> None:
    """The one who looked before has the result still."""
    store = InMemoryStateStorage()
    id = _run(store, A, b'"result"')
    seen = store.get_request(A, id)
    assert seen is not None
    store.purge(store.now(), 10, Retention(payload_bytes=0))
    assert (seen.data, seen.evicted) == (b'"result"', False)
    again = store.get_request(A, id)
    assert again is not None
    assert (again.data, again.evicted) == (b"", True)


def test_a_deleted_actor_may_come_again_before_its_old_requests_are_forgotten() -> None:
    """Forgetting those leaves the new ones alone."""
    store = InMemoryStateStorage()
    _run(store, A)
    lease = store.claim("w-1", A)
    assert lease is not None
    store.delete(lease)
    id = _run(store, A)
    store.purge(store.now(), 100, Retention(ids=1))
    assert store.get_request(A, id) is not None
    store.purge(store.now(), 100, Retention(ids=0))
    assert store.get_request(A, id) is None


def test_a_forked_child_begins_with_nothing() -> None:
    """And with a lock of its own; the parent keeps what it has."""
    store = InMemoryStateStorage()
    store.write(A, [SetValue("a", b"1")])
    with store._boxes.lock_of(
        A
    ):  # as if another thread were in the middle of something
        child = os.fork()
        if child == 0:
            os._exit(0 if store.read(A).values == {} else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.read(A).values == {"a": b"1"}


def test_a_forked_child_does_not_wait_for_a_write_of_its_parent() -> None:
    """The state is where the storage has it."""
    store = StateOnlyStore(DictStorage())
    store.write_state(A, {"a": 1})
    with store._changes_of(A):
        child = os.fork()
        if child == 0:
            os._exit(0 if store.delete_state(A) else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_nobody_is_told_anything() -> None:
    """Since no other process can do anything to this store."""
    store = InMemoryStateStorage()
    told: list[HintKind] = []
    subscription = store.subscribe(lambda hint: told.append(hint.kind))
    store.accept(RequestRecord(A, "m-1", "run"), Limits())
    subscription.close()
    assert told == []


def test_threads_that_do_everything_at_once_leave_it_whole() -> None:
    """Each request that was accepted is pending or has ended, and is counted once."""
    store = InMemoryStateStorage()
    actors = _actors(6)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that threads meet in the middle of things
    try:
        sent = in_threads(6, lambda number: _bustle(store, actors, number))
    finally:
        sys.setswitchinterval(interval)
    accepted = [one for some in sent for one in some]
    records = [store.get_request(*one) for one in accepted]
    pending = {
        (record.actor_id, record.message_id)
        for record in records
        if record is not None and record.status is RequestStatus.PENDING
    }
    assert None not in records
    assert store.pending() == len(pending) == len(store._boxes.pending)
    for actor_id in actors:
        summary = store.inspect(actor_id)
        running = 0 if summary is None or summary.running is None else 1
        queued = 0 if summary is None else summary.queued
        assert queued + running == sum(id == actor_id for id, _ in pending)
    dated = [record for record in records if record and record.deadline is not None]
    waits = [record for record in dated if record.status is RequestStatus.PENDING]
    assert len(store._boxes.deadlines) == len(waits)


def _bustle(
    store: InMemoryStateStorage, actors: list[ActorId], number: int
) -> list[tuple[ActorId, str]]:
    """Do this and that, like many runtimes at once; return what was accepted."""
    pick = random.Random(number)
    worker = f"w-{number % 3}"
    accepted: list[tuple[ActorId, str]] = []
    for step in range(1500):
        actor_id, chance, now = pick.choice(actors), pick.random(), store.now()
        if chance < 0.4:
            deadline = pick.choice([None, None, now - 1.0, now + 100.0])
            sent = RequestRecord(actor_id, f"{number}-{step}", deadline=deadline)
            limits = Limits(
                mailbox=pick.choice([3, 50]),
                on_busy=pick.choice(["enqueue", "rollback"]),
            )
            if store.accept(sent, limits).outcome is Acceptance.NEW:
                accepted.append((actor_id, f"{number}-{step}"))
        elif chance < 0.8:
            store.heartbeat(worker, 600.0)
            with suppress(LeaseLostError):
                _drain(store, store.claim(worker, actor_id))
        elif accepted and chance < 0.85:
            store.cancel(*accepted[-1])
        elif chance < 0.9:
            store.expire(now, 10)
        elif chance < 0.95:
            store.purge(now, 10, Retention())
        else:
            store.retire(worker)
            store.ready(worker, 10)
            store.cancellations(worker)
    return accepted


def _drain(store: InMemoryStateStorage, lease: Lease | None) -> None:
    if lease is None:
        return
    record = store.take(lease, crash_attempts=1000).record
    while record is not None:
        done = store.commit(
            lease,
            TurnCommit(message_id=record.message_id, status=RequestStatus.COMPLETED),
        )
        record = None if done.taken is None else done.taken.record
    store.release(lease)


# Storages that keep state alone.


def test_a_runtime_may_be_given_many_things() -> None:
    """A store, a URL, nothing, a storage of three methods, derived or not."""

    class Duck:
        read_state = write_state = delete_state = DictStorage.read_state

    store = InMemoryStateStorage()
    assert as_store(store) is store
    assert type(as_store(None)) is InMemoryStateStorage
    assert type(as_store("memory://")) is InMemoryStateStorage
    assert type(open_actor_store("memory://")) is InMemoryStateStorage
    for storage in (DictStorage(), Duck()):
        assert type(as_store(storage)) is StateOnlyStore  # type: ignore[arg-type] # the second has the methods alone
    with pytest.raises(ConfigurationError, match="cannot keep actors: give a URL"):
        as_store(7)  # type: ignore[arg-type] # what is refused


def test_the_state_goes_where_the_user_wants_it() -> None:
    """As values, with the commit of the turn; the rest stays here."""
    storage = DictStorage()
    store = StateOnlyStore(storage)
    store.heartbeat("w-1", 600.0)
    lease = store.claim("w-1", A)
    assert lease is not None
    turn = TurnCommit(
        message_id="m-1",
        request=RequestRecord(A, "m-1", "run"),
        status=RequestStatus.COMPLETED,
        state=[SetValue("a", b'{"n":[1]}')],
        outbox=[Outgoing(RequestRecord(A, "m-2", "run"))],
        progress=[ProgressItem(1, b"1")],
    )
    store.commit(lease, turn)
    assert storage.read_state(A) == {"a": {"n": [1]}}
    assert store.read_progress(A, "m-1", 0, 9) == [ProgressItem(1, b"1")]
    assert store.relay(store.now() + 1.0, 9).actors == [A]


def test_what_others_wrote_is_noticed() -> None:
    """A turn that read the state before does not overwrite it."""
    storage = DictStorage()
    store = StateOnlyStore(storage)
    store.heartbeat("w-1", 600.0)
    lease = store.claim("w-1", A)
    assert lease is not None
    etag = store.read(A).etag
    storage.write_state(A, {"theirs": 1})
    turn = TurnCommit(
        message_id="m-1",
        request=RequestRecord(A, "m-1", "run"),
        status=RequestStatus.COMPLETED,
        etag=etag,
        state=[SetValue("ours", b"1")],
    )
    done = store.commit(lease, turn)
    assert (done.outcome, done.taken) == (CommitOutcome.CONFLICT, None)
    assert storage.read_state(A) == {"theirs": 1}
    assert store.get_request(A, "m-1") is None


def test_a_state_ends_before_or_after_a_turn() -> None:
    """One that is committed while the state is deleted keeps what it writes."""
    inside, go_on = threading.Event(), threading.Event()

    class Slow(DictStorage):
        def delete_state(self, actor_id: ActorId) -> bool:
            inside.set()
            go_on.wait(10.0 * SLOW)
            return super().delete_state(actor_id)

    store = StateOnlyStore(Slow())
    _commit_state(store, "m-1", b"1")
    later = store.now() + 20.0
    purging = threading.Thread(target=store.purge, args=(later, 10, Retention()))
    turn = threading.Thread(target=_commit_state, args=(store, "m-2", b"2"))
    purging.start()
    assert inside.wait(10.0 * SLOW)
    turn.start()
    turn.join(0.05)
    go_on.set()
    for thread in (turn, purging):
        thread.join(10.0 * SLOW)
        assert not thread.is_alive()
    assert store.read_state(A) == {"a": 2}


def test_a_state_that_cannot_be_deleted_is_tried_again() -> None:
    """And keeps no other from its end."""

    class Broken(DictStorage):
        broken = True

        def delete_state(self, actor_id: ActorId) -> bool:
            if self.broken and actor_id == A:
                raise OSError("the disk fails")
            return super().delete_state(actor_id)

    storage = Broken()
    store = StateOnlyStore(storage)
    other = ActorId("echo", "other")
    _commit_state(store, "m-1", b"1")
    _commit_state(store, "m-1", b"1", other)
    with pytest.raises(OSError, match="the disk fails"):
        store.purge(store.now() + 20.0, 10, Retention())
    assert store.purge(store.now() + 20.0, 10, Retention()) == 1
    assert list(storage.states) == [A]
    storage.broken = False
    assert store.purge(store.now() + 100.0, 10, Retention()) == 1
    assert not storage.states


def test_a_storage_that_does_not_write_fails_the_commit() -> None:
    """Nothing is kept then, and it may be tried again."""
    storage = DictStorage()
    storage.refuses = True
    store = StateOnlyStore(storage)
    store.accept(RequestRecord(A, "m-1", "run"), Limits())
    store.heartbeat("w-1", 600.0)
    lease = store.claim("w-1", A)
    assert lease is not None
    store.take(lease)
    turn = TurnCommit(
        message_id="m-1",
        status=RequestStatus.COMPLETED,
        state=[SetValue("a", b"1")],
    )
    with pytest.raises(ServiceUnavailableError, match="did not write the state"):
        store.commit(lease, turn)
    record = store.get_request(A, "m-1")
    assert record is not None
    assert record.status is RequestStatus.PENDING
    storage.refuses = False
    assert store.commit(lease, turn).outcome is CommitOutcome.COMMITTED
    assert storage.read_state(A) == {"a": 1}
