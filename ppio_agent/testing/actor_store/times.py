"""The contract about what comes later: relay, reminders, deadlines, who waits."""

from __future__ import annotations

from typing import Any

import pytest

from ppio_agent.storage.actors import IActorStore
from ppio_agent.storage.actors.records import (
    Acceptance,
    CancelReminder,
    Limits,
    Outgoing,
    RequestRecord,
    Retention,
    SetReminder,
    SetValue,
)
from ppio_agent.storage.actors.schedule import GIVE_UP_AFTER, tick_id
from ppio_agent.wire.actors import ActorId, RequestStatus
from ppio_agent.wire.json import decode_json

from .base import (
    A,
    B,
    ContractBase,
    accepted,
    begin,
    code_of,
    commit,
    in_threads,
    kept,
    request,
)

__all__ = ["TimeContract"]

_C = ActorId("echo", "c-3")


def _turn(store: IActorStore, message_id: str = "m-0", **fields: Any) -> None:
    """Run one turn of A that leaves these."""
    lease = begin(store)
    commit(store, lease, message_id, request=request(message_id), **fields)
    store.release(lease)


def _take_one(store: IActorStore, actor_id: ActorId) -> RequestRecord | None:
    lease = begin(store, actor_id)
    record = store.take(lease).record
    if record is not None:
        commit(store, lease, record.message_id, take=False)
    store.release(lease)
    return record


class TimeContract(ContractBase):
    """What comes later."""

    # Requests to others.

    def test_what_a_turn_sends_is_relayed_once(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """In its order, and not before the commit."""
        fields: dict[str, Any] = {"sender": str(A), "params": b"[1]", "chain": ("x/y",)}
        sent = [request(f"o-{n}", B, **fields) for n in range(3)]
        _turn(store, outbox=[Outgoing(one) for one in sent])
        now = store.now() + 1.0
        assert peer.relay(now, 100).actors == [B]
        assert store.relay(now, 100).actors == []
        arrived = kept(store, "o-1", B)
        assert arrived.status is RequestStatus.PENDING
        assert (arrived.sender, arrived.params) == (str(A), b"[1]")
        assert (arrived.chain, arrived.created_at) == (("x/y",), now)
        ids = [record.message_id for record in _all_of(store, B)]
        assert ids == ["o-0", "o-1", "o-2"]

    def test_what_is_sent_later_waits(self, store: IActorStore) -> None:
        """Until its own time."""
        at = store.now() + 100.0
        outbox = [Outgoing(request("late", B), at), Outgoing(request("soon", B))]
        _turn(store, outbox=outbox)
        assert store.relay(at - 1.0, 10).actors == [B]
        assert store.get_request(B, "late") is None
        assert store.relay(at, 10).actors == [B]
        assert kept(store, "late", B).status is RequestStatus.PENDING

    def test_relays_at_once_deliver_once(self, store: IActorStore) -> None:
        """However many processes do it."""
        outbox = [Outgoing(request(f"o-{n}", B)) for n in range(20)]
        _turn(store, outbox=outbox)
        now = store.now() + 1.0
        in_threads(4, lambda _: [store.relay(now, 3) for _ in range(7)])
        assert store.relay(now, 100).actors == []
        ids = {record.message_id for record in _all_of(store, B)}
        assert ids == {f"o-{n}" for n in range(20)}

    def test_a_relay_looks_at_a_page(self, store: IActorStore) -> None:
        """And tells whether there may be more, also if no mailbox had room."""
        accepted(store, request("b-0", B))
        full = [Outgoing(request(f"o-{n}", B), mailbox=1) for n in range(3)]
        late = Outgoing(request("late", B), store.now() + 1000.0)
        _turn(store, outbox=[*full, late])
        now = store.now() + 1.0
        first, second = store.relay(now, 2), store.relay(now, 2)
        assert (first.actors, first.more, first.left) == ([], True, 4)
        assert (second.actors, second.more, second.left) == ([], False, 4)
        _take_one(store, B)
        assert store.relay(now + 100.0, 1).left == 3

    def test_a_relayed_id_that_is_known_runs_nothing(self, store: IActorStore) -> None:
        """The request that came first stays as it is."""
        accepted(store, request("o-1", B, params=b"[1]"))
        _turn(store, outbox=[Outgoing(request("o-1", B, params=b"[2]"))])
        store.relay(store.now() + 1.0, 10)
        assert [record.params for record in _all_of(store, B)] == [b"[1]"]

    def test_a_full_mailbox_is_tried_again(self, store: IActorStore) -> None:
        """Later each time."""
        accepted(store, request("b-0", B))
        _turn(store, outbox=[Outgoing(request("o-1", B), mailbox=1)])
        now = store.now() + 1.0
        assert store.relay(now, 10).actors == []
        _take_one(store, B)
        assert store.relay(now + 0.05, 10).actors == []
        assert store.relay(now + 0.2, 10).actors == [B]
        assert store.dead_letters(10) == []

    @pytest.mark.parametrize("deadline", [None, 50.0])
    def test_a_mailbox_that_stays_full_makes_a_dead_letter(
        self, store: IActorStore, deadline: float | None
    ) -> None:
        """When the deadline has passed, or after a day."""
        accepted(store, request("b-0", B))
        now = store.now() + 1.0
        end = now + (GIVE_UP_AFTER if deadline is None else deadline) + 60.0
        until = None if deadline is None else now + deadline
        sent = request("o-1", B, params=b"[7]", deadline=until)
        _turn(store, outbox=[Outgoing(sent, mailbox=1)])
        for time in (now, now + 40.0, end, end + 60.0):
            assert store.relay(time, 10).actors == []
        (letter,) = store.dead_letters(10)
        assert (letter.reason, letter.request.message_id) == ("mailbox_full", "o-1")
        assert letter.request.params == b"[7]"
        assert letter.request.actor_id == B

    # Reminders.

    def test_a_reminder_comes_when_it_is_due(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """Once, as a request whose id is of its name and time."""
        due = store.now() + 10.25
        _turn(store, reminders=[SetReminder("w\u00fcke", due, "tick", b'{"a":[1]}')])
        assert store.fire_reminders(due - 0.01, 10).actors == []
        assert peer.fire_reminders(due + 1.0, 10).actors == [A]
        assert store.fire_reminders(due + 5.0, 10).actors == []
        record = kept(store, tick_id("w\u00fcke", due))
        assert (record.method, record.created_at) == ("tick", due + 1.0)
        told = {"name": "w\u00fcke", "due": due, "missed": 0, "params": {"a": [1]}}
        assert decode_json(record.params) == told

    def test_a_reminder_keeps_its_phase(self, store: IActorStore) -> None:
        """What was missed comes as one, and is counted."""
        due = store.now() + 10.0
        _turn(store, reminders=[SetReminder("tick", due, "tick", period=2.0)])
        seen = []
        for now in (due, due + 1.9, due + 2.5, due + 9.5, due + 9.9, due + 10.0):
            if store.fire_reminders(now, 10).actors:
                record = _take_one(store, A)
                assert record is not None
                told = decode_json(record.params)
                seen.append((round(told["due"] - due, 3), told["missed"]))
        assert seen == [(0.0, 0), (2.0, 0), (8.0, 2), (10.0, 0)]

    def test_a_reminder_comes_so_often(self, store: IActorStore) -> None:
        """Those that were missed count."""
        due = store.now() + 10.0
        tick = SetReminder("tick", due, "tick", period=1.0, count=4)
        _turn(store, reminders=[tick])
        assert store.fire_reminders(due + 1.5, 10).actors == [A]
        _take_one(store, A)
        assert store.fire_reminders(due + 100.0, 10).actors == [A]
        _take_one(store, A)
        assert store.fire_reminders(due + 200.0, 10).actors == []
        summary = store.inspect(A)
        assert summary is not None
        assert summary.reminders == ()

    def test_a_reminder_waits_for_its_last_request(self, store: IActorStore) -> None:
        """A slow actor does not get a heap of them."""
        due = store.now() + 10.0
        _turn(store, reminders=[SetReminder("tick", due, "tick", period=1.0)])
        assert store.fire_reminders(due, 10).actors == [A]
        for later in (1.0, 2.0, 3.0):
            assert store.fire_reminders(due + later, 10).actors == []
        _take_one(store, A)
        assert store.fire_reminders(due + 4.5, 10).actors == [A]
        record = _take_one(store, A)
        assert record is not None
        assert decode_json(record.params)["missed"] == 3

    def test_a_reminder_is_replaced_by_its_name(self, store: IActorStore) -> None:
        """And forgotten by it; others stay."""
        due = store.now() + 10.0
        _turn(
            store,
            reminders=[
                SetReminder("a", due, "one"),
                SetReminder("b", due, "two"),
                SetReminder("c", due, "three"),
            ],
        )
        changes = [CancelReminder("b"), SetReminder("a", due + 50.0, "new")]
        _turn(store, "m-1", reminders=[*changes, CancelReminder("nothing")])
        summary = store.inspect(A)
        assert summary is not None
        assert sorted(summary.reminders) == ["a", "c"]
        assert store.fire_reminders(due + 1.0, 10).actors == [A]
        assert [record.method for record in _all_of(store, A)] == ["three"]
        assert store.fire_reminders(due + 60.0, 10).actors == [A]
        assert [record.method for record in _all_of(store, A)] == ["new"]

    def test_so_many_reminders_come_at_once(self, store: IActorStore) -> None:
        """And the rest is told of."""
        due = store.now() + 10.0
        _turn(store, reminders=[SetReminder(f"r-{n}", due, "tick") for n in range(3)])
        assert store.fire_reminders(due, 2).more
        assert not store.fire_reminders(due, 2).more
        assert len(_all_of(store, A)) == 3

    def test_reminders_fired_at_once_come_once(self, store: IActorStore) -> None:
        """However many processes do it."""
        due = store.now() + 10.0
        reminders = [SetReminder(f"r-{n}", due, "tick") for n in range(20)]
        _turn(store, reminders=reminders)
        fire = lambda _: [store.fire_reminders(due, 3) for _ in range(8)]  # noqa: E731 - only here
        in_threads(4, fire)
        assert store.fire_reminders(due, 100).actors == []
        assert len({record.message_id for record in _all_of(store, A)}) == 20

    # Deadlines.

    def test_requests_end_when_their_deadline_has_passed(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """Those that wait and those that run; each is told once."""
        at = store.now() + 100.0
        accepted(
            store,
            request("runs", deadline=at),
            request("waits", deadline=at + 1.0),
            request("later", deadline=at + 9.0),
            request("never"),
            request("other", B, deadline=at),
        )
        store.take(begin(store))
        assert store.expire(at - 0.5, 10) == []
        ended = peer.expire(at + 2.0, 10)
        ids = {(record.actor_id, record.message_id) for record in ended}
        assert ids == {(A, "runs"), (A, "waits"), (B, "other")}
        for record in [*ended, kept(store, "runs")]:
            assert record.status is RequestStatus.EXPIRED
            assert code_of(record) == "invocation_timeout"
            assert record.finished_at is not None
        assert store.expire(at + 2.0, 10) == []
        assert kept(store, "later").status is RequestStatus.PENDING
        assert kept(store, "never").status is RequestStatus.PENDING

    def test_so_many_expire_at_once(self, store: IActorStore) -> None:
        """The rest at the next time."""
        at = store.now() + 100.0
        accepted(store, *(request(f"m-{n}", deadline=at + n) for n in range(5)))
        first = store.expire(at + 10.0, 3)
        second = store.expire(at + 10.0, 3)
        assert [len(first), len(second)] == [3, 2]
        assert len({record.message_id for record in [*first, *second]}) == 5

    def test_what_has_ended_does_not_expire(self, store: IActorStore) -> None:
        """Its result stays."""
        at = store.now() + 100.0
        accepted(store, request(deadline=at), request("m-2", deadline=at))
        lease = begin(store)
        store.take(lease)
        store.cancel(A, "m-2")
        commit(store, lease)
        assert store.expire(at + 1.0, 10) == []

    # What waits for a worker.

    def test_actors_that_wait_for_a_worker_are_found(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """Those with requests whose lease is free or its own."""
        ids = [ActorId("echo", f"r-{n}") for n in range(4)]
        for actor_id in ids[:3]:
            accepted(store, request(actor_id=actor_id))
        begin(store, ids[1], "w-1")
        begin(store, ids[2], "w-2")
        begin(store, ids[3], "w-1")
        assert set(peer.ready("w-1", 10)) == {ids[0], ids[1]}
        assert set(peer.ready("w-2", 10)) == {ids[0], ids[2]}
        assert len(peer.ready("w-1", 1)) == 1
        store.retire("w-2")
        assert set(peer.ready("w-1", 10)) == set(ids[:3])
        _take_one(store, ids[0])
        assert ids[0] not in peer.ready("w-1", 10)

    def test_an_actor_whose_turn_was_begun_waits_for_a_worker(
        self, store: IActorStore
    ) -> None:
        """As after its worker died; the request is pending still."""
        accepted(store, request())
        store.take(begin(store, A, "w-1"))
        assert store.ready("w-2", 10) == []
        store.retire("w-1")
        assert store.ready("w-2", 10) == [A]

    def test_a_state_with_a_time_to_live_is_forgotten(self, store: IActorStore) -> None:
        """Unless another turn commits before."""
        later = store.now() + 100.0
        for actor_id in (A, B):
            lease = begin(store, actor_id)
            ops = [SetValue("a", b"1")]
            first = request(actor_id=actor_id)
            commit(store, lease, request=first, state=ops, state_ttl=50.0)
            store.release(lease)
        lease = begin(store, B)
        commit(store, lease, "m-2", request=request("m-2", B), state_ttl=500.0)
        store.release(lease)
        etag = store.read(A).etag
        _purge(store, store.now() + 1.0)
        assert store.read(A).etag == etag
        _purge(store, later)
        assert store.read(A).values == {}
        assert not store.write(A, [SetValue("b", b"1")], etag).success
        assert store.read(B).values == {"a": b"1"}
        answer = store.accept(request(), Limits())
        assert answer.outcome is Acceptance.DUPLICATE

    # Who waits for whom.

    def test_a_circle_of_waiting_actors_is_found(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """By the last pair that closes it, in the order in which they wait."""
        assert store.wait([(A, B)]) == []
        assert store.wait([(A, B), (B, _C)]) == []
        assert peer.wait([(_C, A)]) == [_C, A, B]
        store.unwait([B])
        assert peer.wait([(_C, A)]) == []

    def test_who_waits_no_more_is_in_no_circle(self, store: IActorStore) -> None:
        """Nor is one that waits for another now."""
        store.wait([(A, B)])
        store.unwait([A, _C])
        assert store.wait([(B, A)]) == []
        store.wait([(A, _C)])
        assert store.wait([(_C, B)]) == [_C, B, A]
        store.unwait([A, B, _C])
        assert store.wait([(A, A)]) == [A]
        store.unwait([A])


def _all_of(store: IActorStore, actor_id: ActorId) -> list[RequestRecord]:
    found: list[RequestRecord] = []
    while record := _take_one(store, actor_id):
        found.append(record)
    return found


def _purge(store: IActorStore, now: float) -> None:
    while store.purge(now, 100, Retention()):
        pass
