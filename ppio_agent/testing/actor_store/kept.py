"""The contract about what is kept, for how long, and what people see of it."""

from __future__ import annotations

import pytest

from ppio_agent.exceptions import LeaseLostError
from ppio_agent.storage.actors import IActorStore
from ppio_agent.storage.actors.records import (
    Acceptance,
    Limits,
    Outgoing,
    ProgressItem,
    Retention,
    SetReminder,
    SetValue,
)
from ppio_agent.wire.actors import RequestStatus

from .base import (
    A,
    B,
    ContractBase,
    accepted,
    begin,
    commit,
    eventually,
    in_threads,
    kept,
    request,
)

__all__ = ["KeptContract"]


def _ended(store: IActorStore, count: int, data: bytes = b"1") -> list[str]:
    """End so many requests of A, one after the other; return their ids."""
    ids = [f"e-{n}" for n in range(count)]
    lease = begin(store)
    for id in ids:
        sent = request(id, digest=id.encode() * 8)
        commit(store, lease, id, request=sent, data=data)
    store.release(lease)
    return ids


def _dead(store: IActorStore, *ids: str) -> None:
    """Make dead letters of A's."""
    lease = begin(store)
    for id in ids:
        failed = RequestStatus.FAILED
        commit(store, lease, id, request=request(id), status=failed, dead="crash")
    store.release(lease)


def _purge(store: IActorStore, now: float, retention: Retention) -> int:
    total = count = store.purge(now, 1000, retention)
    while count:
        count = store.purge(now, 1000, retention)
        total += count
    return total


class KeptContract(ContractBase):
    """What is kept, for how long, and what people see of it."""

    def test_ended_requests_are_forgotten_in_time(self, store: IActorStore) -> None:
        """With their steps; an id that is forgotten is new again."""
        accepted(store, request("waits"))
        lease = begin(store)
        steps = [ProgressItem(1, b"1")]
        commit(store, lease, request=request(), progress=steps)
        retention = Retention(seconds=100.0)
        assert _purge(store, store.now() + 90.0, retention) == 0
        assert store.accept(request(), Limits()).outcome is Acceptance.DUPLICATE
        assert _purge(store, store.now() + 200.0, retention) > 0
        assert store.get_request(A, "m-1") is None
        assert store.read_progress(A, "m-1", 0, 10) == []
        assert kept(store, "waits").status is RequestStatus.PENDING
        accepted(store, request())

    def test_so_many_ended_requests_are_kept(self, store: IActorStore) -> None:
        """The latest of them."""
        ids = _ended(store, 8)
        _purge(store, store.now(), Retention(ids=3))
        known = [id for id in ids if store.get_request(A, id) is not None]
        assert known == ids[-3:]

    def test_so_many_bytes_of_results_are_kept(self, store: IActorStore) -> None:
        """Of older ones status and digest stay, so that they run once."""
        ids = _ended(store, 6, data=b'"%b"' % (b"x" * 998))
        _purge(store, store.now(), Retention(payload_bytes=2500))
        records = [kept(store, id) for id in ids]
        assert [record.evicted for record in records] == [True] * 4 + [False] * 2
        assert [len(record.data) for record in records] == [0] * 4 + [1000] * 2
        assert {record.status for record in records} == {RequestStatus.COMPLETED}
        other = request(ids[0], digest=b"other")
        assert store.accept(other, Limits()).outcome is Acceptance.CONFLICT

    def test_steps_count_as_bytes_of_results(self, store: IActorStore) -> None:
        """And go with them."""
        lease = begin(store)
        step = [ProgressItem(1, b'"%b"' % (b"x" * 998))]
        for id in ("m-1", "m-2"):
            commit(store, lease, id, request=request(id), progress=step)
        _purge(store, store.now(), Retention(payload_bytes=1500))
        assert kept(store).evicted
        assert store.read_progress(A, "m-1", 0, 10) == []
        assert store.read_progress(A, "m-2", 0, 10) == step

    def test_dead_letters_are_listed_from_the_oldest(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """In pages, of which the discarded ones are missing."""
        ids = [f"d-{n}" for n in range(5)]
        _dead(store, *ids)
        letters = peer.dead_letters(100)
        assert [letter.request.message_id for letter in letters] == ids
        numbers = [letter.id for letter in letters]
        assert len(set(numbers)) == 5

        def page(limit: int, after: str | None = None) -> list[str]:
            return [letter.id for letter in peer.dead_letters(limit, after)]

        assert page(2) == numbers[:2]
        assert page(2, numbers[1]) == numbers[2:4]
        assert store.discard(numbers[1])
        assert not store.discard(numbers[1])
        assert store.dead_letter(numbers[1]) is None
        assert page(100, numbers[1]) == numbers[2:]
        assert page(100, numbers[-1]) == []
        assert store.dead_letter("nothing") is None
        assert not store.discard("nothing")

    def test_dead_letters_have_what_was_asked(self, store: IActorStore) -> None:
        """Also of a request that was not accepted before its turn."""
        accepted(store, request(params=b"[1]"))
        lease = begin(store)
        store.take(lease)
        failed = RequestStatus.FAILED
        commit(store, lease, status=failed, dead="crash", take=False)
        sent = request("m-2", params=b"[2]")
        commit(store, lease, "m-2", request=sent, status=failed, dead="crash")
        letters = store.dead_letters(10)
        assert [letter.request.params for letter in letters] == [b"[1]", b"[2]"]
        assert kept(store, "m-2").params == b""

    def test_dead_letters_are_forgotten(self, store: IActorStore) -> None:
        """In time, and the oldest when they are too many."""
        _dead(store, *(f"d-{n}" for n in range(5)))
        now = store.now()
        _purge(store, now, Retention(dead_letters=3))
        letters = store.dead_letters(100)
        ids = [letter.request.message_id for letter in letters]
        assert ids == ["d-2", "d-3", "d-4"]
        _purge(store, now + 50.0, Retention(dead_seconds=100.0))
        assert len(store.dead_letters(100)) == 3
        _purge(store, now + 200.0, Retention(dead_seconds=100.0))
        assert store.dead_letters(100) == []

    def test_an_actor_is_inspected(self, store: IActorStore, peer: IActorStore) -> None:
        """What waits, what runs, who has it."""
        assert store.inspect(A) is None
        accepted(store, *(request(f"m-{n}") for n in range(4)))
        etag = store.write(A, [SetValue("a", b"1")]).etag
        lease = begin(store)
        store.take(lease)
        seen = peer.inspect(A)
        assert seen is not None
        assert (seen.actor_id, seen.etag, seen.owner) == (A, etag, None)
        assert (seen.worker, seen.token) == ("w-1", lease.token)
        assert (seen.queued, seen.running, seen.last_turn) == (3, "m-0", None)
        before = store.now()
        ticks = [SetReminder("tick", before + 1e6, "tick")]
        commit(store, lease, "m-0", reminders=ticks, take=False)
        store.release(lease)
        seen = peer.inspect(A)
        assert seen is not None
        assert (seen.queued, seen.running, seen.worker) == (3, None, None)
        assert seen.reminders == ("tick",)
        assert seen.last_turn is not None
        assert before - 5.0 <= seen.last_turn <= store.now() + 5.0

    def test_the_first_owner_stays(self, store: IActorStore, peer: IActorStore) -> None:
        """Whoever asks later is told who it is."""
        assert store.owner(A) is None
        assert store.own(A, "ann\u00e9") == "ann\u00e9"
        assert peer.own(A, "bob") == peer.owner(A) == "ann\u00e9"
        assert store.own(B, "bob") == "bob"
        seen = store.inspect(A)
        assert seen is not None
        assert seen.owner == "ann\u00e9"

    def test_of_racing_owners_one_is_the_owner(self, store: IActorStore) -> None:
        """And all are told the same."""
        owners = in_threads(6, lambda number: store.own(A, f"p-{number}"))
        assert len(set(owners)) == 1

    def test_an_owner_stays_when_the_actor_is_idle(self, store: IActorStore) -> None:
        """A lease that comes and goes changes nothing."""
        store.own(A, "anna")
        store.release(begin(store))
        _purge(store, store.now(), Retention())
        assert store.owner(A) == "anna"

    def test_a_deleted_actor_has_nothing(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """State, requests, steps, reminders, letters, owner: all is gone."""
        now = store.now()
        store.own(A, "anna")
        accepted(store, request("waits", deadline=now + 10.0))
        _dead(store, "m-0")
        lease = begin(store)
        commit(
            store,
            lease,
            request=request(),
            state=[SetValue("a", b"1")],
            reminders=[SetReminder("tick", now + 1.0, "tick")],
            progress=[ProgressItem(1, b"1")],
            outbox=[Outgoing(request("o-1", B))],
            take=False,
        )
        accepted(store, request("other", B))
        assert store.delete(lease)
        assert store.inspect(A) is None
        assert peer.read(A).values == {}
        assert peer.owner(A) is None
        assert peer.get_request(A, "waits") is None
        assert peer.get_request(A, "m-1") is None
        assert peer.read_progress(A, "m-1", 0, 10) == []
        assert peer.dead_letters(10) == []
        assert peer.fire_reminders(now + 60.0, 10).actors == []
        assert peer.expire(now + 60.0, 10) == []
        assert kept(store, "other", B).status is RequestStatus.PENDING
        assert peer.relay(now + 60.0, 10).actors == [
            B
        ]  # what it said before stays said
        with pytest.raises(LeaseLostError):
            store.take(lease)
        accepted(store, request())

    def test_deleting_an_actor_that_has_nothing(self, store: IActorStore) -> None:
        """Says so."""
        assert not store.delete(begin(store))

    def test_pending_requests_are_counted(self, store: IActorStore) -> None:
        """Those that wait and those that run, perhaps a second late."""
        assert store.pending() == 0
        accepted(store, request(), request("m-2"), request(actor_id=B))
        lease = begin(store)
        store.take(lease)
        assert eventually(lambda: store.pending() == 3)
        commit(store, lease)
        store.cancel(B, "m-1")
        assert eventually(lambda: store.pending() == 1)

    def test_a_subscription_ends(self, store: IActorStore) -> None:
        """Any number of times."""
        subscription = store.subscribe(lambda hint: None)  # noqa: ARG005 - told of nothing
        accepted(store, request())
        subscription.close()
        subscription.close()

    def test_the_clock_goes_on(self, store: IActorStore) -> None:
        """In seconds since 1970."""
        first = store.now()
        assert first > 1.6e9
        assert store.now() >= first

    def test_a_store_says_what_it_is(self, store: IActorStore) -> None:
        """Whether it outlives the process, and whether others may use it."""
        assert store.durable in {True, False}
        assert store.shared in {True, False}

    def test_a_store_is_closed_any_number_of_times(self, store: IActorStore) -> None:
        """The second time nothing happens."""
        store.close()
        store.close()
