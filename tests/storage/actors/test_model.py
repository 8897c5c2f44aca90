"""Whatever is done to a store, in any order: it does what the model does.

No request is lost or run out of its order, none ends twice, nobody whose lease is over
changes anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ppio_agent.exceptions import LeaseLostError
from ppio_agent.storage.actors import IActorStore, open_actor_store
from ppio_agent.storage.actors.records import (
    Cancellation,
    Cancelled,
    CommitOutcome,
    Lease,
    Limits,
    Outgoing,
    RequestRecord,
    SetValue,
    Taken,
    TurnCommit,
)
from ppio_agent.wire.actors import ActorId, RequestStatus
from ppio_agent.wire.json import decode_json

from .support_model import PENDING, Actor, Known, Model

_IDS = [ActorId("echo", "a"), ActorId("echo", "b")]
_WORKERS = ["w-1", "w-2"]
_CRASH_ATTEMPTS = 2
_FAR = 1e6  # seconds from now: no deadline passes by itself

_actors = st.sampled_from(_IDS)
_workers = st.sampled_from(_WORKERS)
_which = st.integers(0, 9)  # of those that are there, from the latest on
_deadlines = st.sampled_from([None, None, _FAR + 1.0, _FAR + 2.0])
_ages = st.sampled_from([0, 0, 0, 0, 1])  # of leases: mostly the latest
_limits = st.builds(
    Limits,
    mailbox=st.integers(1, 4),
    drop_oldest=st.booleans(),
    on_busy=st.sampled_from(["enqueue"] * 3 + ["reject", "interrupt", "rollback"]),
)


class StoreMachine(RuleBasedStateMachine):
    """Two actors, two workers, and leases of which most are old."""

    make: Callable[[], IActorStore]

    @initialize()
    def begin(self) -> None:
        self.store = type(self).make()
        self.model = Model({id: Actor() for id in _IDS})
        self.leases: dict[ActorId, list[tuple[Lease, int]]] = {id: [] for id in _IDS}
        self.numbers = itertools.count(1)
        self.now = self.store.now()
        for id in _IDS:
            self.claim(id, "w-1")

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()

    def deadline(self, after: float | None) -> float | None:
        return None if after is None else self.now + after

    def fresh(self) -> str:
        return f"m-{next(self.numbers)}"

    def known(self, id: ActorId, which: int) -> str:
        names = list(self.model.actors[id].requests) or ["m-0"]
        return names[-1 - which % len(names)]

    @rule(id=_actors, count=st.integers(1, 3), after=_deadlines)
    def fill(self, id: ActorId, count: int, after: float | None) -> None:
        """Some requests come."""
        for _ in range(count):
            self.send(id, self.fresh(), after, Limits())

    @rule(id=_actors, again=st.none() | _which, after=_deadlines, limits=_limits)
    def accept(
        self, id: ActorId, again: int | None, after: float | None, limits: Limits
    ) -> None:
        """A request comes that is not taken by all means, or has come before."""
        name = self.fresh() if again is None else self.known(id, again)
        self.send(id, name, after, limits)

    def send(self, id: ActorId, name: str, after: float | None, limits: Limits) -> None:
        deadline = self.deadline(after)
        expected = self.model.accept(
            self.model.actors[id], Known(name, deadline), limits
        )
        answer = self.store.accept(
            RequestRecord(id, name, "run", deadline=deadline), limits
        )
        ended = [record.message_id for record in answer.ended]
        assert (answer.outcome.value, ended, answer.running) == expected

    @rule(id=_actors, which=_which, how=st.sampled_from(Cancellation))
    def cancel(self, id: ActorId, which: int, how: Cancellation) -> None:
        """Somebody wants the end of a request."""
        name = self.known(id, which)
        expected = self.model.cancel(self.model.actors[id], name, how)
        assert self.store.cancel(id, name, how).value == expected

    @precondition(lambda self: any(one.running for one in self.model.actors.values()))
    @rule(id=_actors, how=st.sampled_from(Cancellation))
    def interrupt(self, id: ActorId, how: Cancellation) -> None:
        """Somebody wants the end of a turn."""
        running = self.model.actors[id].running
        if running is not None:
            self.model.note(running, how)
            assert self.store.cancel(id, running.id, how) is Cancelled.REQUESTED

    @rule(id=_actors, worker=_workers)
    def claim(self, id: ActorId, worker: str) -> None:
        """A worker that lives wants an actor."""
        self.store.heartbeat(worker, _FAR)
        self.model.workers.add(worker)
        actor = self.model.actors[id]
        lease = self.store.claim(worker, id)
        assert (lease is not None) == self.model.claim(actor, worker)
        if lease is not None:
            actor.token = next(self.numbers)
            self.leases[id].append((lease, actor.token))

    @rule(id=_actors, worker=_workers, retires=st.integers(0, 3))
    def leave(self, id: ActorId, worker: str, retires: int) -> None:
        """A worker gives an actor back, goes, or is found to be dead."""
        if retires == 3:
            self.store.retire(worker)
            self.model.retire(worker)
            return
        lease, actor, valid = self.pick(id, retires)
        self.store.release(lease)
        if valid:
            actor.worker = None

    def pick(self, id: ActorId, age: int) -> tuple[Lease, Actor, bool]:
        """Return a lease, and whether it is valid."""
        leases = self.leases[id]
        lease, token = leases[-1 - age % len(leases)]
        actor = self.model.actors[id]
        valid = actor.worker == lease.worker and actor.token == token
        return lease, actor, valid

    @rule(id=_actors, age=_ages)
    def take(self, id: ActorId, age: int) -> None:
        """A turn begins, perhaps once more."""
        lease, actor, valid = self.pick(id, age)
        try:
            taken = self.store.take(lease, crash_attempts=_CRASH_ATTEMPTS)
        except LeaseLostError:
            assert not valid
            return
        assert valid
        assert _ids_of(taken) == self.model.take(actor, _CRASH_ATTEMPTS)

    @rule(
        id=_actors,
        age=_ages,
        which=st.none() | _which,
        fresh=st.sampled_from([True, True, False, None]),
        sends=st.booleans(),
        tells=st.none() | st.tuples(_actors, st.booleans()),
        keep=st.booleans(),
        take=st.booleans(),
    )
    def commit(
        self,
        *,
        id: ActorId,
        age: int,
        which: int | None,
        fresh: bool | None,
        sends: bool,
        tells: tuple[ActorId, bool] | None,
        keep: bool,
        take: bool,
    ) -> None:
        """A turn ends: of the request that runs, or of any other."""
        lease, actor, valid = self.pick(id, age)
        name = self.fresh() if sends else self.known(id, which or 0)
        if which is None and actor.running is not None:
            name = actor.running.id
        etag = self.store.read(id).etag
        told = []
        if tells is not None:
            to, known = tells
            told = [(to, Known(self.known(to, 0) if known else self.fresh(), None, 2))]
        turn = TurnCommit(
            message_id=name,
            status=RequestStatus.COMPLETED,
            request=RequestRecord(id, name, "run") if sends else None,
            etag=etag if fresh else None if fresh is None else "none such",
            state=[SetValue(name, name.encode())],
            keep=keep,
            outbox=[
                Outgoing(RequestRecord(to, one.id, "told"), mailbox=one.mailbox)
                for to, one in told
            ],
            take=take,
            crash_attempts=_CRASH_ATTEMPTS,
        )
        try:
            done = self.store.commit(lease, turn)
        except LeaseLostError:
            assert not valid
            return
        assert valid
        outcome = self.model.commit(
            actor,
            name,
            fresh=fresh is not False,
            sent=Known(name) if sends else None,
            state={name: name.encode()},
            keep=keep,
            outbox=told,
        )
        assert done.outcome.value == outcome
        assert done.etag == self.store.read(id).etag
        if not take or done.outcome is CommitOutcome.CONFLICT:
            assert done.taken is None
        else:
            assert done.taken is not None
            assert _ids_of(done.taken) == self.model.take(actor, _CRASH_ATTEMPTS)

    @rule(after=st.sampled_from([0.0, 1.0, 2.0]))
    def expire(self, after: float) -> None:
        """Deadlines pass."""
        now = self.now + _FAR + after
        ended = {record.message_id for record in self.store.expire(now, 100)}
        assert ended == self.model.expire(now)

    @rule(tries=st.integers(1, 3))
    def relay(self, tries: int) -> None:
        """What turns sent comes to others."""
        self.now += 3600.0 * tries  # those that found a full mailbox are due again
        if self.model.outbox and self.now > self.store.now() + 80_000.0:
            return  # and none is given up
        got = set(self.store.relay(self.now, 100).actors)
        assert got == self.model.relay()

    @invariant()
    def the_store_shows_what_the_model_knows(self) -> None:
        """Requests, mailboxes, state, leases, dead letters."""
        if not hasattr(self, "store"):
            return
        for id, actor in self.model.actors.items():
            for name, known in actor.requests.items():
                record = self.store.get_request(id, name)
                assert record is not None
                assert _seen(record) == known.seen()
            assert self.store.read(id).values == actor.state
            summary = self.store.inspect(id)
            running = actor.running and actor.running.id
            if summary is not None:
                seen = (summary.queued, summary.running, summary.worker)
                assert seen == (len(actor.waiting), running, actor.worker)
            else:
                assert not actor.requests
                assert not actor.state
                assert actor.worker is None
        letters = self.store.dead_letters(1000)
        dead = [(letter.request.message_id, letter.reason) for letter in letters]
        assert dead == self.model.dead
        for worker in _WORKERS:
            ready = {
                id
                for id, actor in self.model.actors.items()
                if actor.queue and actor.worker in (None, worker)
            }
            assert set(self.store.ready(worker, 10)) == ready


def _ids_of(taken: Taken) -> tuple[str | None, list[str]]:
    ended = [one.message_id for one in taken.ended]
    return None if taken.record is None else taken.record.message_id, ended


def _seen(record: RequestRecord) -> tuple[object, ...]:
    end = PENDING
    if record.status.terminal:
        done = record.status is RequestStatus.COMPLETED
        code = "" if done else decode_json(record.data)["code"]
        end = (record.status.value, code)
    return end, record.attempt, record.cancel


def _run(make: Callable[[], IActorStore], examples: int, steps: int) -> None:
    machine = type("Machine", (StoreMachine,), {"make": staticmethod(make)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples, stateful_step_count=steps, deadline=None
        ),
    )


def test_the_memory_store_does_what_the_model_does() -> None:
    """In any order of steps."""
    _run(lambda: _opened("memory://"), 60, 40)


def test_the_sqlite_store_does_what_the_model_does(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """In fewer."""

    def make() -> IActorStore:
        folder = tmp_path_factory.mktemp("model")
        return _opened(f"sqlite:///{folder}/a.db")

    _run(make, 5, 25)


def _opened(url: str) -> IActorStore:
    store = open_actor_store(url)
    assert isinstance(store, IActorStore)
    return store
