"""Actors in a real Redis server: the contract, and what is left when a client dies."""

from __future__ import annotations

import logging
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import ConfigurationError, ServiceUnavailableError
from ppio_agent.storage.actors import IActorStore, open_actor_store, redis_sweeps
from ppio_agent.storage.actors.records import (
    Acceptance,
    Cancelled,
    Hint,
    HintKind,
    Lease,
    Limits,
    Outgoing,
    ProgressItem,
    RequestRecord,
    Retention,
    SetReminder,
    SetValue,
    TurnCommit,
)
from ppio_agent.storage.actors.redis import RedisActorStore
from ppio_agent.testing.actor_store import ActorStoreContract
from ppio_agent.wire.actors import ActorId, RequestStatus
from tests.support import wait_until
from tests.support_redis import RedisServer

A, B = ActorId("echo", "a"), ActorId("echo", "b}:actor")
LATER = 100_000.0  # more than a day


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("r"))
    yield server
    server.stop()


@pytest.fixture(scope="module", autouse=True)
def cluster_to_be(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("c"), "--cluster-enabled", "yes")
    server.begin_cluster()  # while the other tests run
    yield server
    server.stop()


@pytest.fixture
def cluster(cluster_to_be: RedisServer) -> RedisServer:
    """One that refuses whatever touches the keys of two slots."""
    cluster_to_be.wait_for_cluster()
    return cluster_to_be


def _emptied(server: RedisServer) -> str:
    with server.client() as client:
        client.flushdb()
    return server.url()


class TestRedisActorStore(ActorStoreContract):
    """The contract."""

    @pytest.fixture
    def store(self, server: RedisServer) -> Iterator[RedisActorStore]:
        store = RedisActorStore(_emptied(server))
        yield store
        store.close()

    @pytest.fixture
    def peer(
        self, store: RedisActorStore, server: RedisServer
    ) -> Iterator[RedisActorStore]:
        peer = RedisActorStore(server.url())
        yield peer
        peer.close()


# A client that dies between any two of its round trips; of a cluster, for all kinds of
# scripts run here.


class _Killed(BaseException):
    """The client is no more."""


class _Mortal:
    """A Redis client that makes so many round trips."""

    def __init__(self, client: Any, trips: int) -> None:
        self._client, self._left = client, trips

    def _live(self) -> None:
        if not self._left:
            raise _Killed
        self._left -= 1

    def execute_command(self, *words: Any) -> Any:
        self._live()
        return self._client.execute_command(*words)

    def pipeline(self, *, transaction: bool) -> Any:
        self._live()
        return self._client.pipeline(transaction=transaction)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def _killed_everywhere(
    server: RedisServer,
    prepare: Callable[[RedisActorStore], Any],
    act: Callable[[RedisActorStore, Any], object],
    check: Callable[[RedisActorStore], object],
) -> int:
    """Let a client die before its first round trip, its second …; return how many."""
    trips = 0
    while True:
        url = _emptied(server)
        mortal = RedisActorStore(url)
        given = prepare(mortal)
        mortal._link._redis = _Mortal(mortal._link._redis, trips)
        try:
            act(mortal, given)
            survived = True
        except _Killed:
            survived = False
        mortal.close()
        heir = RedisActorStore(url)
        try:
            check(heir)
        finally:
            heir.close()
        if survived:
            return trips
        trips += 1


def _request(id: str, actor_id: ActorId = A, **fields: Any) -> RequestRecord:
    return RequestRecord(actor_id, id, params=b'{"n":1}', **fields)


def _begun(store: IActorStore, *ids: str) -> Lease:
    """Accept requests of A and begin the turn of the first, by a worker that lives."""
    for id in ids:
        assert store.accept(_request(id), Limits()).outcome is Acceptance.NEW
    store.heartbeat("w-1", 0.001)
    lease = store.claim("w-1", A)
    assert lease is not None
    store.take(lease)
    return lease


def _commit(store: IActorStore, lease: Lease) -> None:
    """A turn that leaves something of every kind."""
    store.commit(
        lease,
        TurnCommit(
            message_id="m-1",
            status=RequestStatus.FAILED,
            data=b'{"code":"x"}',
            state=[SetValue("k", b"1")],
            outbox=[Outgoing(_request(f"o-{n}", B)) for n in range(3)],
            reminders=[SetReminder("r", store.now(), "tick")],
            progress=[ProgressItem(1, b"1")],
            dead="x",
            state_ttl=LATER / 2,
        ),
    )


def _ids(store: IActorStore, actor_id: ActorId) -> list[str]:
    """Take and end all requests of an actor; return their ids in this order."""
    store.heartbeat("w-2", LATER)
    lease = store.claim("w-2", actor_id)
    assert lease is not None
    taken = store.take(lease)
    ids: list[str] = []
    while taken is not None and taken.record is not None:
        ids.append(taken.record.message_id)
        turn = TurnCommit(
            message_id=ids[-1], status=RequestStatus.COMPLETED, state_ttl=1.0
        )
        taken = store.commit(lease, turn).taken  # type: ignore[assignment] # is asked for
    store.release(lease)
    return ids


def _sweep(store: IActorStore) -> None:
    """What any other worker does, twice: what was done stays done."""
    for _ in range(2):
        store.ready("w-2", 100)
        store.cancellations("w-2")
        store.relay(store.now() + 1.0, 100)


def test_an_accepted_request_is_found_whoever_died(cluster: RedisServer) -> None:
    """Accepted or not: never in between."""

    def check(store: RedisActorStore) -> None:
        known = store.get_request(A, "m-1")
        _sweep(store)
        assert store.pending() == (known is not None)
        assert store.ready("w-2", 10) == ([A] if known else [])
        ended = store.expire(store.now() + LATER, 10)
        assert [record.message_id for record in ended] == (["m-1"] if known else [])
        assert store.pending() == 0

    trips = _killed_everywhere(
        cluster,
        lambda store: _request("m-1", deadline=store.now() + 5.0),
        lambda store, request: store.accept(request, Limits()),
        check,
    )
    assert trips == 2  # the script of the actor, and that of the indexes


def test_a_turn_leaves_all_or_nothing_whoever_died(cluster: RedisServer) -> None:
    """What it sends, sets and buries is there once, in its order."""

    def check(store: RedisActorStore) -> None:
        record = store.get_request(A, "m-1")
        assert record is not None
        if record.status is RequestStatus.PENDING:
            _sweep(store)
            assert store.dead_letters(10) == []
            assert store.read(A).values == {}
            store.heartbeat("w-2", LATER)
            lease = store.claim("w-2", A)
            assert lease is not None
            taken = store.take(lease).record
            assert taken is not None
            assert (taken.message_id, taken.attempt) == ("m-1", 2)
            _commit(store, lease)
            store.release(lease)
        _sweep(store)
        assert store.pending() == 4
        assert store.read(A).values == {"k": b"1"}
        assert [letter.reason for letter in store.dead_letters(10)] == ["x"]
        assert _ids(store, B) == ["o-0", "o-1", "o-2"]
        assert store.fire_reminders(store.now() + 1.0, 10).actors == [A]
        assert store.fire_reminders(store.now() + 1.0, 10).actors == []
        first, tick = _ids(store, A)
        assert (first, tick[:2]) == ("m-2", "r-")
        assert store.pending() == 0
        store.purge(store.now() + 2 * LATER, 100, Retention(seconds=1.0))
        _is_swept(cluster)

    _killed_everywhere(
        cluster, lambda store: _begun(store, "m-1", "m-2"), _commit, check
    )


def _is_swept(server: RedisServer) -> None:
    """Nothing is left of actors but dead letters."""
    with server.client() as client:
        names = {key.decode() for key in client.scan_iter()}
    index = "ppio:{actors}:"
    assert {name.removeprefix(index) for name in names} <= {
        "bytes", "dead", "letters", "schema",
    }  # fmt: skip


def test_what_leaves_arrives_once_whoever_died(cluster: RedisServer) -> None:
    """Also if those who carry it die one after the other."""

    def prepare(store: RedisActorStore) -> None:
        lease = _begun(store, "m-1")
        _commit(store, lease)
        full = Outgoing(_request("full", B, deadline=1.0), mailbox=1)
        assert store.accept(_request("m-3"), Limits()).outcome is Acceptance.NEW
        store.take(lease)
        turn = TurnCommit(
            message_id="m-3", status=RequestStatus.COMPLETED, outbox=[full]
        )
        store.commit(lease, turn)
        store.release(lease)

    def check(store: RedisActorStore) -> None:
        _sweep(store)
        reasons = [letter.reason for letter in store.dead_letters(10)]
        assert sorted(reasons) == ["mailbox_full", "x"]
        assert _ids(store, B) == ["o-0", "o-1", "o-2"]

    _killed_everywhere(
        cluster,
        prepare,
        lambda store, _: store.relay(store.now() + 1.0, 100),
        check,
    )


def test_a_reminder_comes_once_whoever_died(cluster: RedisServer) -> None:
    """And the next one in its time."""

    def prepare(store: RedisActorStore) -> None:
        lease = _begun(store, "m-1")
        reminder = SetReminder("r", store.now() + 1.0, "tick", period=10.0)
        turn = TurnCommit(
            message_id="m-1", status=RequestStatus.COMPLETED, reminders=[reminder]
        )
        store.commit(lease, turn)
        store.release(lease)

    def check(store: RedisActorStore) -> None:
        _sweep(store)
        store.fire_reminders(store.now() + 2.0, 10)
        assert len(_ids(store, A)) == 1
        assert store.fire_reminders(store.now() + 5.0, 10).actors == []
        assert store.fire_reminders(store.now() + 12.0, 10).actors == [A]

    _killed_everywhere(
        cluster,
        prepare,
        lambda store, _: store.fire_reminders(store.now() + 2.0, 10),
        check,
    )


@pytest.mark.parametrize("how", ["cancel", "expire", "supersede", "delete", "purge"])
def test_an_end_is_an_end_whoever_died(cluster: RedisServer, how: str) -> None:
    """The indexes follow."""
    acts: dict[str, Callable[[RedisActorStore, Any], object]] = {
        "cancel": lambda store, _: store.cancel(A, "m-2"),
        "expire": lambda store, _: store.expire(store.now() + LATER, 10),
        "supersede": lambda store, _: store.accept(
            _request("m-4"), Limits(on_busy="interrupt")
        ),
        "delete": lambda store, lease: store.delete(lease),
        "purge": lambda store, _: store.purge(
            store.now() + LATER, 100, Retention(seconds=1.0, payload_bytes=0)
        ),
    }

    def prepare(store: RedisActorStore) -> Lease:
        lease = _begun(store, "m-1")
        _commit(store, lease)
        deadline = store.now() + 5.0
        store.accept(_request("m-2", deadline=deadline), Limits())
        store.accept(_request("m-3"), Limits())
        store.take(lease)
        return lease

    def check(store: RedisActorStore) -> None:
        _sweep(store)
        known = [store.get_request(A, f"m-{n}") for n in range(1, 5)]
        pending = [r for r in known if r and r.status is RequestStatus.PENDING]
        store.expire(store.now() + LATER, 10)
        assert _ids(store, A) == [
            record.message_id for record in pending if record.deadline is None
        ]
        _ids(store, B)
        store.fire_reminders(store.now() + LATER, 10)
        _ids(store, A)
        assert store.pending() == 0
        store.purge(store.now() + 2 * LATER, 100, Retention(seconds=1.0))
        _is_swept(cluster)

    _killed_everywhere(cluster, prepare, acts[how], check)


CLIENT = """
import sys
from ppio_agent.exceptions import LeaseLostError
from ppio_agent.storage.actors.records import *
from ppio_agent.storage.actors.redis import RedisActorStore
from ppio_agent.wire.actors import ActorId, RequestStatus

store, name = RedisActorStore(sys.argv[1]), sys.argv[2]
a, b = ActorId("echo", "a"), ActorId("echo", "b}:actor")

def claimed():
    lease = None
    while lease is None:
        store.heartbeat(name, 0.2)
        lease = store.claim(name, a)
    return lease

def turn(lease):
    store.heartbeat(name, 0.2)
    record = store.take(lease).record
    if record is None:
        return
    id = record.message_id
    read = store.read(a)
    count = int(read.values.get("n", b"0")) + 1
    store.commit(lease, TurnCommit(
        message_id=id, status=RequestStatus.COMPLETED, etag=read.etag, take=False,
        state=[SetValue("n", str(count).encode())],
        outbox=[Outgoing(RequestRecord(b, "o-" + id), mailbox=10**6)],
    ))

lease = claimed()
for n in range(1_000_000):
    store.accept(RequestRecord(a, f"{name}-{n}"), Limits())
    print(f"{name}-{n}", flush=True)
    while True:
        try:
            turn(lease)
            break
        except LeaseLostError:  # it was held up, and the other came by
            lease = claimed()
"""


def test_nothing_is_lost_or_doubled_when_processes_are_killed(
    server: RedisServer,
) -> None:
    """What was acknowledged ends; each end has changed the state and sent once."""
    url = _emptied(server)
    said: list[str] = []
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CLIENT, url, name],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for name in ("p-1", "p-2")
    ]
    # Whichever has the lease is killed; the other takes over.
    (speaks, *_), _, _ = select.select([p.stdout for p in processes], [], [])
    for process in sorted(processes, key=lambda p: p.stdout is not speaks):
        with process:
            assert process.stdout is not None
            said += [process.stdout.readline().strip() for _ in range(30)]
            process.send_signal(signal.SIGKILL)
            said += process.stdout.read().split()
    assert "" not in said
    store = RedisActorStore(url)
    try:
        wait_until(lambda: store.ready("w-2", 10) or not store.pending())
        rest = _ids(store, A)
        while store.relay(store.now() + 1.0, 1000).actors:
            pass
        records = [store.get_request(A, id) for id in said]
        assert {r.status if r else None for r in records} == {RequestStatus.COMPLETED}
        by_them = sorted(set(said) - set(rest))
        assert store.read(A).values["n"] == str(len(by_them)).encode()
        assert sorted(_ids(store, B)) == [f"o-{id}" for id in by_them]
        assert store.pending() == 0
    finally:
        store.close()


# Sweeps.


def test_lost_indexes_are_made_anew(cluster: RedisServer) -> None:
    """By what the actors themselves know: the next sweep but one finds them."""
    url = _emptied(cluster)
    store = RedisActorStore(url)
    lease = _begun(store, "m-1")
    _commit(store, lease)
    store.own(A, "anna")
    store.accept(_request("m-2", deadline=store.now() + 5.0), Limits())
    store.take(lease)
    store.cancel(A, "m-2")
    store.heartbeat("w-1", LATER)
    with cluster.client() as client:

        def indexes() -> dict[str, Any]:
            keys = sorted(client.scan_iter("ppio:{actors}:*"))
            kinds = {key: client.type(key) for key in keys}
            return {
                key.decode(): client.zrange(key, 0, -1, withscores=True)
                if kind == b"zset"
                else client.get(key)
                for key, kind in kinds.items()
                if kind in {b"zset", b"string"}
            }

        before = indexes()
        kept = ("dead", "letters", "schema", "workers")
        for key in before:
            if not key.endswith(kept):
                client.delete(key)
        assert store.pending() == 0
        store.close()
        store = RedisActorStore(url)
        store.ready("w-1", 10)
        after = indexes()
        noted = "ppio:{actors}:cancels"  # whose time says nothing
        assert [m for m, _ in after.pop(noted)] == [m for m, _ in before.pop(noted)]
        assert after == before
    assert store.ready("w-1", 10) == [A]
    store.close()


def test_the_owner_of_nothing_is_forgotten(server: RedisServer) -> None:
    """After the retention, however often the indexes were made anew."""
    store = RedisActorStore(_emptied(server))
    store.own(A, "anna")
    store.own(B, "bert")
    store.write(B, [SetValue("k", b"1")])
    store.ready("w-1", 10)
    store.purge(store.now() + 5.0, 10, Retention(seconds=LATER))
    assert store.owner(A) == "anna"
    later = store.now() + LATER
    looked = [store.purge(later, 1, Retention(seconds=5.0)) for _ in range(3)]
    assert looked == [1, 1, 0]
    assert (store.owner(A), store.owner(B)) == (None, "bert")
    store.close()


def test_all_that_is_too_much_is_evicted_by_one_purge(server: RedisServer) -> None:
    """However few it looks at in one go."""
    store = RedisActorStore(_emptied(server))
    lease = _begun(store)
    for n in range(7):
        turn = TurnCommit(
            message_id=f"m-{n}",
            status=RequestStatus.COMPLETED,
            data=b"1" * 100,
            request=_request(f"m-{n}"),
        )
        store.commit(lease, turn)
    store.purge(store.now(), 2, Retention(payload_bytes=200))
    records = [store.get_request(A, f"m-{n}") for n in range(7)]
    assert [one and one.evicted for one in records] == [True] * 5 + [False] * 2
    store.close()


def test_no_end_is_set_to_a_state_that_is_empty(server: RedisServer) -> None:
    """There would be nothing to delete."""
    store = RedisActorStore(_emptied(server))
    lease = _begun(store)
    turn = TurnCommit(
        message_id="m-1",
        status=RequestStatus.COMPLETED,
        request=_request("m-1"),
        state_ttl=50.0,
    )
    store.commit(lease, turn)
    assert store.purge(store.now() + 100.0, 10, Retention()) == 0
    store.close()


def test_a_turn_that_is_taken_again_is_the_same(server: RedisServer) -> None:
    """Its answer was not heard; of another owner it is another."""
    store = RedisActorStore(_emptied(server))
    store.accept(_request("m-1"), Limits())
    lease = _begun(store)
    first, again = (
        store.take(lease, crash_attempts=1),
        store.take(lease, crash_attempts=1),
    )
    assert first.record is not None
    assert again.record is not None
    assert first.record.attempt == again.record.attempt == 1
    other = store.claim(lease.worker, A)
    assert other is not None
    assert [one.message_id for one in store.take(other, crash_attempts=1).ended] == [
        "m-1"
    ]
    store.close()


def test_a_long_index_is_looked_at_page_by_page(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Actors of others do not hide those behind them."""
    monkeypatch.setattr(redis_sweeps, "_PAGE", 2)
    store = RedisActorStore(_emptied(server))
    store.heartbeat("w-1", LATER)
    store.heartbeat("w-2", LATER)
    for n in range(5):
        actor_id = ActorId("echo", f"{n}")
        store.accept(_request("m-1", actor_id, created_at=float(n)), Limits())
        if n != 4:
            store.claim("w-1", actor_id)
    found = [store.ready("w-2", 10) for _ in range(4)]
    assert found == [[], [], [ActorId("echo", "4")], []]
    store.retire("w-1")
    assert store.ready("w-2", 1) == [ActorId("echo", "2")]
    store.close()


# The server.


def test_a_server_that_forgets_its_scripts_is_told_them_again(
    server: RedisServer,
) -> None:
    """As after a restart, also in the middle."""
    store = RedisActorStore(_emptied(server))
    with server.client() as client:
        lease = _begun(store, "m-1", "m-2")
        client.script_flush()
        _commit(store, lease)
        client.script_flush()
        assert store.ready("w-2", 10) == [A]
        client.script_flush()
        assert store.relay(store.now() + 1.0, 10).actors == [B]
    store.close()


def test_hints_tell_what_others_do(server: RedisServer) -> None:
    """Each kind of them, until the subscription ends."""
    url = _emptied(server)
    store, other = RedisActorStore(url), RedisActorStore(url)
    heard: list[tuple[HintKind, ActorId, str]] = []

    def hear(hint: Hint) -> None:
        heard.append((hint.kind, hint.actor_id, hint.message_id))
        if hint.message_id == "bad":
            raise ValueError("a subscriber's own")

    subscription = store.subscribe(hear)

    def listens() -> bool:
        with server.client() as client:
            ((_, count),) = client.pubsub_numsub("ppio:{actors}:pending")
        return bool(count)

    wait_until(listens)
    lease = _begun(other, "m-1")
    other.append_progress(lease, "m-1", [ProgressItem(1, b"1")])
    assert other.cancel(A, "m-1") is Cancelled.REQUESTED
    _commit(other, lease)
    kinds = (HintKind.READY, HintKind.PROGRESS, HintKind.CANCEL, HintKind.ENDED)
    wait_until(lambda: heard == [(kind, A, "m-1") for kind in kinds], what=f"{heard}")
    subscription.close()
    other.accept(_request("m-9"), Limits())
    store.close()
    other.close()
    assert len(heard) == 4
    assert not [t for t in threading.enumerate() if t.name.startswith("ppio-actor")]


def test_hints_come_back_with_the_server(
    tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture
) -> None:
    """What was told meanwhile is lost; a request to a server that is away is refused."""
    server = RedisServer(tmp_path_factory.mktemp("s"))
    store = RedisActorStore(server.url())
    heard: list[Hint] = []
    store.subscribe(heard.append)
    try:
        wait_until(lambda: store.cancel(A, "x") and _ready(store, heard))
        server.stop()
        with pytest.raises(ServiceUnavailableError, match="Redis server") as caught:
            store.accept(_request("m-1"), Limits())
        assert caught.value.retryable
        wait_until(lambda: "are not heard for now" in caplog.text)
        heard.clear()
        server.start()
        wait_until(lambda: _ready(store, heard), timeout=10.0)
    finally:
        store.close()
        server.stop()


def _ready(store: IActorStore, heard: list[Hint]) -> bool:
    id = new_id()
    store.accept(_request(id, B), Limits())
    store.cancel(B, id)
    return bool(heard)


def test_a_server_that_may_lose_what_it_has_is_warned_of(
    server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once for each store; one with an append-only file is not."""
    RedisActorStore(server.url()).close()
    with server.client() as client:
        client.config_set("maxmemory", "1gb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        RedisActorStore(server.url()).close()
        client.config_set("maxmemory", "0")
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    loses = (
        "the Redis server loses actors and requests when it ends (set appendonly yes)"
    )
    full = "when its memory is full (set maxmemory-policy noeviction)"
    assert warnings == [loses, f"{loses} and {full}"]
    caplog.clear()
    durable = RedisServer(
        tmp_path_factory.mktemp("f"), "--appendonly", "yes", "--appendfsync", "no"
    )
    try:
        store = RedisActorStore(durable.url())
        store.accept(_request("m-1"), Limits())
        store.close()
        durable.stop()
        durable.start()
        # It loads its file first.
        wait_until(lambda: _known(durable.url()))
    finally:
        durable.stop()
    assert caplog.records == []


def _known(url: str) -> bool:
    try:
        store = RedisActorStore(url)
    except ServiceUnavailableError:
        return False
    try:
        return store.get_request(A, "m-1") is not None
    finally:
        store.close()


def test_a_newer_schema_is_refused(server: RedisServer) -> None:
    """Nothing of it is touched."""
    url = _emptied(server)
    with server.client() as client:
        client.set("ppio:{actors}:schema", 2)
        with pytest.raises(ConfigurationError, match=r"schema 2.* knows 1"):
            RedisActorStore(url)
        client.flushdb()


def test_without_its_client_redis_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only whoever uses it needs it."""
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'ppio-agent\[redis\]'"):
        open_actor_store("redis://localhost")


def test_a_url_that_cannot_be_read_is_not_repeated() -> None:
    """It may hold a password."""
    with pytest.raises(ConfigurationError, match="check port and options") as caught:
        open_actor_store("redis://:secret@host:secret")
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_server_that_is_away_cannot_be_opened() -> None:
    """It is an error that passes."""
    with pytest.raises(ServiceUnavailableError, match="look at it") as caught:
        open_actor_store("redis://:secret@127.0.0.1:1")
    assert "secret" not in str(caught.value)
