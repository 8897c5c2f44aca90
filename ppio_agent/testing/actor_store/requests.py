"""The contract about requests: how they come in, wait and are cancelled."""

from __future__ import annotations

from typing import Any

from ppio_agent.storage.actors import IActorStore
from ppio_agent.storage.actors.records import (
    Acceptance,
    Cancellation,
    Cancelled,
    CommitOutcome,
    Limits,
    Outgoing,
    SetValue,
)
from ppio_agent.wire.actors import RequestStatus

from .base import (
    A,
    B,
    ContractBase,
    accepted,
    begin,
    code_of,
    commit,
    eventually,
    fields_of,
    in_threads,
    kept,
    request,
)

__all__ = ["RequestContract"]

_DIGEST, _OTHER_DIGEST = b"\x00\xff" * 16, b"\x01" * 32


class RequestContract(ContractBase):
    """How requests come in, wait and are cancelled."""

    def test_a_request_is_kept_exactly(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """Every field, times to the last bit."""
        fields: dict[str, Any] = {
            "method": "ru\u00fc \U0001f600",
            "params": b'{"a":[1,"\xc3\xa9\\u0000"]}',
            "digest": _DIGEST,
            "sender": "echo/o'brien",
            "chain": ("echo/a b", "echo/b/c"),
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "created_at": 1_700_000_000.123_456_7,
            "deadline": 4_000_000_000.987_654_3,
        }
        before = fields_of(request(**fields))
        accepted(store, request(**fields))
        assert fields_of(kept(peer)) == before
        accepted(store, request("m-2"))
        assert fields_of(kept(peer, "m-2")) == fields_of(request("m-2"))

    def test_an_unknown_request_is_none(self, store: IActorStore) -> None:
        """Of an unknown actor, too."""
        assert store.get_request(A, "m-1") is None
        accepted(store, request())
        assert store.get_request(A, "m-2") is None
        assert store.get_request(B, "m-1") is None

    def test_what_was_returned_is_not_changed_later(self, store: IActorStore) -> None:
        """A record says how things were at that moment."""
        accepted(store, request(params=b"[1]"))
        waiting = kept(store)
        lease = begin(store)
        taken = store.take(lease).record
        assert taken is not None
        store.cancel(A, "m-1")
        running = kept(store)
        assert (taken.cancel, running.cancel) == (None, Cancellation.CANCEL)
        commit(store, lease)
        assert (waiting.attempt, waiting.status) == (0, RequestStatus.PENDING)
        assert (running.status, running.params) == (RequestStatus.PENDING, b"[1]")

    def test_an_id_is_accepted_once(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """The second one gets what is known, while it waits and after its end."""
        accepted(store, request(digest=_DIGEST, params=b"1"))
        again = peer.accept(request(digest=_DIGEST, params=b"1"), Limits())
        assert again.outcome is Acceptance.DUPLICATE
        assert again.record is not None
        assert again.record.status is RequestStatus.PENDING
        lease = begin(store)
        store.take(lease)
        commit(store, lease, data=b'"done"')
        late = peer.accept(request(digest=_DIGEST, params=b"1"), Limits())
        assert late.outcome is Acceptance.DUPLICATE
        assert late.record is not None
        assert late.record.data == b'"done"'
        assert store.take(lease).record is None

    def test_an_id_with_other_content_is_a_conflict(self, store: IActorStore) -> None:
        """Unless one of the two says nothing of its content."""
        accepted(store, request(digest=_DIGEST), request("m-2"))
        other = store.accept(request(digest=_OTHER_DIGEST), Limits())
        assert other.outcome is Acceptance.CONFLICT
        assert other.record is not None
        assert other.record.digest == _DIGEST
        made = store.accept(request(), Limits())
        assert made.outcome is Acceptance.DUPLICATE
        told = store.accept(request("m-2", digest=_DIGEST), Limits())
        assert told.outcome is Acceptance.DUPLICATE
        accepted(store, request(actor_id=B, digest=_OTHER_DIGEST))

    def test_a_known_id_is_looked_at_before_anything_else(
        self, store: IActorStore
    ) -> None:
        """A full mailbox or a busy actor does not matter to it."""
        accepted(store, request())
        for limits in (
            Limits(mailbox=1),
            Limits(pending=1),
            Limits(on_busy="reject"),
            Limits(on_busy="interrupt"),
        ):
            answer = store.accept(request(), limits)
            assert answer.outcome is Acceptance.DUPLICATE
        assert kept(store).status is RequestStatus.PENDING

    def test_one_of_many_with_one_id_is_new(self, store: IActorStore) -> None:
        """Also when they come at once."""
        answers = in_threads(8, lambda _: store.accept(request(), Limits()))
        outcomes = [answer.outcome for answer in answers]
        assert outcomes.count(Acceptance.NEW) == 1
        assert outcomes.count(Acceptance.DUPLICATE) == 7

    def test_requests_are_taken_in_the_order_of_acceptance(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """Whatever their ids and their times say."""
        ids = ["z", "10", "9", "a", "A"]
        for number, id in enumerate(ids):
            via = (store, peer)[number % 2]
            accepted(via, request(id, created_at=1000.0 - number))
        lease = begin(store)
        first = store.take(lease).record
        assert first is not None
        seen = [first.message_id]
        while (taken := commit(store, lease, seen[-1]).taken) and taken.record:
            seen.append(taken.record.message_id)
        assert seen == ids

    def test_a_mailbox_takes_so_many(self, store: IActorStore) -> None:
        """The running one counts; a refused one is not known and may come again."""
        limits = Limits(mailbox=3)
        accepted(store, *(request(f"m-{n}") for n in range(3)), limits=limits)
        lease = begin(store)
        store.take(lease)
        refused = store.accept(request("m-3"), limits)
        assert (refused.outcome, refused.record) == (Acceptance.FULL, None)
        assert store.get_request(A, "m-3") is None
        accepted(store, request("m-3", actor_id=B), limits=limits)
        commit(store, lease, "m-0", take=False)
        accepted(store, request("m-3"), limits=limits)

    def test_a_mailbox_takes_so_many_from_racing_senders(
        self, store: IActorStore
    ) -> None:
        """Exactly so many."""
        limits = Limits(mailbox=10)

        def send(number: int) -> list[Acceptance]:
            ids = (f"m-{number}-{n}" for n in range(4))
            return [store.accept(request(id), limits).outcome for id in ids]

        outcomes = [one for sent in in_threads(8, send) for one in sent]
        assert outcomes.count(Acceptance.NEW) == 10
        assert outcomes.count(Acceptance.FULL) == 22

    def test_all_actors_together_take_so_many(self, store: IActorStore) -> None:
        """Stores that several processes share may notice a second late."""
        limits = Limits(pending=3)
        accepted(store, *(request(f"m-{n}") for n in range(3)))
        outcomes: list[Acceptance] = []

        def refused() -> bool:
            late = request(f"late-{len(outcomes)}", actor_id=B)
            outcomes.append(store.accept(late, limits).outcome)
            return outcomes[-1] is Acceptance.OVERLOADED

        eventually(refused)
        assert store.shared or len(outcomes) == 1
        late_id = f"late-{len(outcomes) - 1}"
        assert store.get_request(B, late_id) is None

    def test_the_oldest_that_waits_makes_room(self, store: IActorStore) -> None:
        """It ends REJECTED as a dead letter; the running one stays."""
        limits = Limits(mailbox=3, drop_oldest=True)
        accepted(store, request("m-0"), request("m-1", params=b"[7]"), request("m-2"))
        lease = begin(store)
        store.take(lease)
        answer = store.accept(request("m-3"), limits)
        assert answer.outcome is Acceptance.NEW
        assert [record.message_id for record in answer.ended] == ["m-1"]
        dropped = kept(store)
        assert dropped.status is RequestStatus.REJECTED
        assert code_of(dropped) == code_of(answer.ended[0]) == "dropped"
        letter = store.dead_letters(10)[0]
        assert (letter.reason, letter.request.params) == ("dropped", b"[7]")
        taken = commit(store, lease, "m-0").taken
        assert taken is not None
        assert taken.record is not None
        assert taken.record.message_id == "m-2"

    def test_nothing_makes_room_if_nothing_waits(self, store: IActorStore) -> None:
        """A turn that runs is not dropped."""
        accepted(store, request())
        store.take(begin(store))
        answer = store.accept(request("m-2"), Limits(mailbox=1, drop_oldest=True))
        assert answer.outcome is Acceptance.FULL
        assert kept(store).status is RequestStatus.PENDING

    def test_a_busy_actor_may_refuse(self, store: IActorStore) -> None:
        """The answer names the request that is in the way."""
        limits = Limits(on_busy="reject")
        accepted(store, request(), limits=limits)
        for _ in range(2):  # while it waits, and while it runs
            answer = store.accept(request("m-2"), limits)
            assert answer.outcome is Acceptance.BUSY
            assert answer.record is not None
            assert answer.record.message_id == "m-1"
            lease = begin(store)
            store.take(lease)
        commit(store, lease)
        accepted(store, request("m-2"), limits=limits)

    def test_an_interrupt_takes_the_place_of_all_others(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """Those that wait end, the running one is told to."""
        accepted(store, *(request(f"m-{n}") for n in range(3)))
        lease = begin(store)
        store.take(lease)
        answer = peer.accept(request("m-3"), Limits(on_busy="interrupt"))
        assert (answer.outcome, answer.running) == (Acceptance.NEW, "m-0")
        assert [record.message_id for record in answer.ended] == ["m-1", "m-2"]
        for id in ("m-1", "m-2"):
            record = kept(store, id)
            assert record.status is RequestStatus.CANCELLED
            assert code_of(record) == "superseded"
        assert kept(store, "m-0").cancel is Cancellation.INTERRUPT
        assert store.cancellations("w-1") == [(A, "m-0", Cancellation.INTERRUPT)]

    def test_an_interrupted_turn_keeps_what_it_says(self, store: IActorStore) -> None:
        """State only, and only with `keep`; the next one begins."""
        for keep in (True, False):
            number = int(keep)
            accepted(store, request(f"old-{number}"))
            lease = begin(store)
            store.take(lease)
            limits = Limits(on_busy="interrupt")
            store.accept(request(f"new-{number}"), limits)
            done = commit(
                store,
                lease,
                f"old-{number}",
                state=[SetValue(f"k{number}", b"1")],
                outbox=[Outgoing(request(f"out-{number}", B))],
                keep=keep,
            )
            assert done.outcome is CommitOutcome.CANCELLED
            assert done.record is not None
            assert code_of(done.record) == "superseded"
            assert done.etag == store.read(A).etag
            assert done.taken is not None
            assert done.taken.record is not None
            assert done.taken.record.message_id == f"new-{number}"
            commit(store, lease, f"new-{number}")
        assert store.read(A).values == {"k1": b"1"}
        assert store.relay(store.now() + 1.0, 10).actors == []

    def test_a_rolled_back_turn_leaves_nothing(self, store: IActorStore) -> None:
        """Whatever it says itself."""
        accepted(store, request())
        lease = begin(store)
        store.take(lease)
        answer = store.accept(request("m-2"), Limits(on_busy="rollback"))
        assert answer.running == "m-1"
        done = commit(store, lease, state=[SetValue("a", b"1")], keep=True)
        assert done.outcome is CommitOutcome.CANCELLED
        assert done.record is not None
        assert code_of(done.record) == "superseded"
        assert store.read(A).values == {}

    def test_an_idle_actor_is_not_interrupted(self, store: IActorStore) -> None:
        """The request is as any other then."""
        answer = store.accept(request(), Limits(on_busy="interrupt"))
        assert answer.outcome is Acceptance.NEW
        assert (list(answer.ended), answer.running) == ([], None)

    def test_a_waiting_request_is_cancelled_at_once(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """It is never taken."""
        accepted(store, request(), request("m-2"))
        assert peer.cancel(A, "m-1") is Cancelled.CANCELLED
        record = kept(store)
        assert record.status is RequestStatus.CANCELLED
        assert record.finished_at is not None
        assert (code_of(record), record.params) == ("cancelled", b"")
        taken = store.take(begin(store)).record
        assert taken is not None
        assert taken.message_id == "m-2"

    def test_what_has_ended_or_is_unknown_is_not_cancelled(
        self, store: IActorStore
    ) -> None:
        """The first end counts."""
        assert store.cancel(A, "m-1") is Cancelled.NOT_FOUND
        accepted(store, request())
        assert store.cancel(B, "m-1") is Cancelled.NOT_FOUND
        lease = begin(store)
        store.take(lease)
        commit(store, lease)
        assert store.cancel(A, "m-1") is Cancelled.TERMINAL
        assert kept(store).status is RequestStatus.COMPLETED

    def test_a_running_request_is_told_to_end(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """Its commit ends it CANCELLED and keeps nothing."""
        accepted(store, request())
        lease = begin(store)
        store.take(lease)
        assert store.cancellations("w-1") == []
        assert peer.cancel(A, "m-1") is Cancelled.REQUESTED
        assert store.cancellations("w-1") == [(A, "m-1", Cancellation.CANCEL)]
        assert store.cancellations("w-2") == []
        assert kept(store).cancel is Cancellation.CANCEL
        done = commit(store, lease, state=[SetValue("a", b"1")], keep=True)
        assert done.outcome is CommitOutcome.CANCELLED
        assert done.record is not None
        assert done.record.status is RequestStatus.CANCELLED
        assert code_of(kept(peer)) == code_of(done.record) == "cancelled"
        assert store.read(A).values == {}
        assert store.cancellations("w-1") == []

    def test_of_two_notes_the_one_that_keeps_less_counts(
        self, store: IActorStore
    ) -> None:
        """INTERRUPT gives way; of the two others the first counts."""
        accepted(store, request())
        store.take(begin(store))
        for how, noted in (
            (Cancellation.INTERRUPT, Cancellation.INTERRUPT),
            (Cancellation.ROLLBACK, Cancellation.ROLLBACK),
            (Cancellation.INTERRUPT, Cancellation.ROLLBACK),
            (Cancellation.CANCEL, Cancellation.ROLLBACK),
        ):
            assert store.cancel(A, "m-1", how) is Cancelled.REQUESTED
            assert kept(store).cancel is noted

    def test_a_cancelled_turn_whose_owner_died_is_not_run_again(
        self, store: IActorStore
    ) -> None:
        """Who takes the next one ends it."""
        accepted(store, request(), request("m-2"))
        store.take(begin(store))
        store.cancel(A, "m-1")
        taken = store.take(begin(store))
        assert [record.message_id for record in taken.ended] == ["m-1"]
        assert code_of(kept(store)) == "cancelled"
        assert taken.record is not None
        assert taken.record.message_id == "m-2"
