"""The contract about leases, turns and what they leave."""

from __future__ import annotations

import pytest

from ppio_agent.exceptions import LeaseLostError
from ppio_agent.storage.actors import IActorStore
from ppio_agent.storage.actors.records import (
    Acceptance,
    CommitOutcome,
    Lease,
    Limits,
    Outgoing,
    ProgressItem,
    RemoveKey,
    SetReminder,
    SetValue,
)
from ppio_agent.wire.actors import ActorId, RequestStatus

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

__all__ = ["TurnContract"]


def _steps(*positions: int) -> list[ProgressItem]:
    return [ProgressItem(n, f'{{"n":{n}}}'.encode()) for n in positions]


class TurnContract(ContractBase):
    """Leases, turns and what they leave."""

    # Leases.

    def test_an_actor_has_one_owner(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """Nobody else gets the lease as long as its worker lives; also unknown actors."""
        lease = begin(store)
        assert (lease.actor_id, lease.worker) == (A, "w-1")
        peer.heartbeat("w-2", 600.0)
        assert peer.claim("w-2", A) is None
        assert peer.claim("w-2", B) is not None

    def test_of_racing_workers_one_gets_the_lease(self, store: IActorStore) -> None:
        """Also when they claim at once."""
        for number in range(8):
            store.heartbeat(f"w-{number}", 600.0)
        leases = in_threads(8, lambda number: store.claim(f"w-{number}", A))
        assert [lease is not None for lease in leases].count(True) == 1

    def test_each_claim_raises_the_token(self, store: IActorStore) -> None:
        """Of the worker that has it already, too; also after a release."""
        leases = [begin(store) for _ in range(3)]
        store.release(leases[-1])
        leases.append(begin(store, worker="w-2"))
        tokens = [lease.token for lease in leases]
        assert tokens == sorted(set(tokens))

    def test_an_older_token_is_refused(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """By all that a turn does; nothing is kept of it."""
        accepted(store, request())
        old = begin(store)
        store.take(old)
        new = begin(peer)
        with pytest.raises(LeaseLostError):
            store.take(old)
        with pytest.raises(LeaseLostError):
            store.append_progress(old, "m-1", _steps(1))
        with pytest.raises(LeaseLostError):
            commit(store, old, state=[SetValue("a", b"1")])
        with pytest.raises(LeaseLostError):
            store.delete(old)
        store.release(old)
        assert kept(store).status is RequestStatus.PENDING
        assert store.read(A).values == {}
        taken = peer.take(new).record
        assert taken is not None
        assert commit(peer, new).outcome is CommitOutcome.COMMITTED

    def test_a_lease_made_up_is_refused(self, store: IActorStore) -> None:
        """Of an actor that nobody claimed, and of somebody else's token."""
        with pytest.raises(LeaseLostError):
            store.take(Lease(A, "w-1", 1))
        lease = begin(store)
        with pytest.raises(LeaseLostError):
            store.take(Lease(A, "w-2", lease.token))

    def test_a_worker_whose_time_has_passed_has_no_leases(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """Others may claim its actors; until one does it may go on."""
        lease = begin(store)
        assert store.heartbeat("w-1", 0.01)
        peer.heartbeat("w-2", 600.0)
        assert eventually(lambda: not store.heartbeat("w-1", 0.01))
        store.take(lease)
        assert eventually(lambda: peer.claim("w-2", A)) is not None
        with pytest.raises(LeaseLostError):
            store.take(lease)

    def test_heartbeats_keep_the_leases(self, store: IActorStore) -> None:
        """The first one, and each in time, says so."""
        assert store.heartbeat("w-1", 600.0)
        assert store.heartbeat("w-1", 600.0)
        begin(store)
        store.heartbeat("w-2", 600.0)
        assert store.claim("w-2", A) is None

    def test_a_released_actor_is_free(self, store: IActorStore) -> None:
        """And its lease is over."""
        accepted(store, request())
        lease = begin(store)
        store.release(lease)
        store.release(lease)
        with pytest.raises(LeaseLostError):
            store.take(lease)
        assert store.take(begin(store, worker="w-2")).record is not None

    def test_a_worker_that_retires_gives_all_back(self, store: IActorStore) -> None:
        """Its leases are over, even if it comes again."""
        leases = [begin(store, actor_id) for actor_id in (A, B)]
        store.retire("w-1")
        begin(store, A, "w-2")
        assert store.heartbeat("w-1", 600.0)
        with pytest.raises(LeaseLostError):
            store.take(leases[1])
        store.retire("nobody")

    # Turns.

    def test_nothing_is_taken_of_an_empty_mailbox(self, store: IActorStore) -> None:
        """And nothing has ended."""
        taken = store.take(begin(store))
        assert (taken.record, list(taken.ended)) == (None, [])

    def test_a_turn_that_begins_is_noted(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """With its number and its start."""
        accepted(store, request(params=b"[1]"))
        before = store.now()
        record = store.take(begin(store)).record
        assert record is not None
        assert (record.params, record.attempt) == (b"[1]", 1)
        assert record.started_at is not None
        assert before - 5.0 <= record.started_at <= store.now() + 5.0
        seen = kept(peer)
        assert (seen.attempt, seen.started_at) == (1, record.started_at)
        assert seen.status is RequestStatus.PENDING

    def test_a_turn_without_an_end_is_the_next_again(self, store: IActorStore) -> None:
        """After so many it ends FAILED as a dead letter, and the others go on."""
        accepted(store, request(params=b"[7]"), request("m-2"))
        for attempt in (1, 2):
            taken = store.take(begin(store, worker="w-1"), crash_attempts=2)
            assert taken.record is not None
            assert (taken.record.message_id, taken.record.attempt) == ("m-1", attempt)
        lease = begin(store)
        taken = store.take(lease, crash_attempts=2)
        assert taken.record is not None
        assert taken.record.message_id == "m-2"
        assert [record.message_id for record in taken.ended] == ["m-1"]
        crashed = kept(store)
        assert crashed.status is RequestStatus.FAILED
        assert (code_of(crashed), crashed.attempt) == ("crashed", 2)
        letter = store.dead_letters(10)[0]
        assert (letter.reason, letter.attempts) == ("crashed", 2)
        assert letter.request.params == b"[7]"

    def test_a_turn_is_begun_once_by_a_lease(self, store: IActorStore) -> None:
        """Whoever was not told of it asks again, as often as it takes."""
        accepted(store, request())
        for attempt in (1, 2):
            lease = begin(store)
            for _ in range(3):
                record = store.take(lease, crash_attempts=2).record
                assert record is not None
                assert record.attempt == kept(store).attempt == attempt

    def test_a_turn_that_is_handed_back_is_no_crash(self, store: IActorStore) -> None:
        """However often: those whose process died count alone."""
        accepted(store, request())
        for attempt in range(1, 5):
            lease = begin(store)
            record = store.take(lease, crash_attempts=2).record
            assert record is not None
            assert record.attempt == attempt
            if attempt % 2:
                store.retire("w-1")
            else:
                store.release(lease)
        for attempt in (5, 6):
            record = store.take(begin(store), crash_attempts=2).record
            assert record is not None
            assert record.attempt == attempt
        taken = store.take(begin(store), crash_attempts=2)
        assert taken.record is None
        assert code_of(taken.ended[0]) == "crashed"

    def test_a_request_past_its_deadline_is_not_begun(self, store: IActorStore) -> None:
        """It ends EXPIRED when it would be taken."""
        accepted(store, request(deadline=store.now() - 1.0), request("m-2"))
        taken = store.take(begin(store))
        assert [record.message_id for record in taken.ended] == ["m-1"]
        expired = kept(store)
        assert expired.status is RequestStatus.EXPIRED
        assert (code_of(expired), expired.attempt) == ("invocation_timeout", 0)
        assert taken.record is not None
        assert taken.record.message_id == "m-2"

    def test_a_commit_keeps_all_that_a_turn_leaves(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """Result, state and steps; who looks from elsewhere sees them."""
        store.write(A, [SetValue("old", b"1"), SetValue("a", b"0")])
        accepted(store, request(params=b"[1]"))
        lease = begin(store)
        store.take(lease)
        etag = store.read(A).etag
        done = commit(
            store,
            lease,
            data=b'{"r":"\xc3\xa9\\u0000"}',
            etag=etag,
            state=[SetValue("a", b"1"), RemoveKey("old")],
            progress=_steps(1, 2),
        )
        assert (done.outcome, done.record) == (CommitOutcome.COMMITTED, None)
        assert done.taken is not None
        assert (done.taken.record, list(done.taken.ended)) == (None, [])
        read = peer.read(A)
        assert (read.values, read.etag) == ({"a": b"1"}, done.etag)
        assert read.etag != etag
        record = kept(peer)
        assert record.status is RequestStatus.COMPLETED
        assert record.data == b'{"r":"\xc3\xa9\\u0000"}'
        assert (record.params, record.position, record.evicted) == (b"", 2, False)
        assert record.finished_at is not None
        assert record.started_at is not None
        assert record.finished_at >= record.started_at
        assert peer.read_progress(A, "m-1", 0, 10) == _steps(1, 2)

    def test_numbers_of_steps_may_be_left_out(self, store: IActorStore) -> None:
        """A turn that is run again begins with a higher one; pages are full."""
        accepted(store, request())
        lease = begin(store)
        store.take(lease)
        told = _steps(1, 2, 700, 701)
        store.append_progress(lease, "m-1", told[:2])
        store.append_progress(lease, "m-1", told[2:])
        assert store.read_progress(A, "m-1", 0, 3) == told[:3]
        assert store.read_progress(A, "m-1", 2, 3) == told[2:]
        assert store.read_progress(A, "m-1", 300, 1) == told[2:3]

    def test_every_end_of_a_turn_is_kept(self, store: IActorStore) -> None:
        """Whatever status it says; its failure is not the store's to judge."""
        lease = begin(store)
        for status in ("failed", "cancelled", "expired", "completed"):
            accepted(store, request(status))
            store.take(lease)
            done = commit(store, lease, status, status=RequestStatus(status))
            assert done.outcome is CommitOutcome.COMMITTED
            assert kept(store, status).status is RequestStatus(status)

    def test_a_commit_without_state_keeps_the_etag(self, store: IActorStore) -> None:
        """Since nothing was written."""
        etag = store.write(A, [SetValue("a", b"1")]).etag
        accepted(store, request())
        lease = begin(store)
        store.take(lease)
        assert commit(store, lease).etag == etag == store.read(A).etag

    def test_a_commit_begins_the_next_turn_if_asked_to(
        self, store: IActorStore
    ) -> None:
        """And leaves it alone if not."""
        accepted(store, request(), request("m-2"), request("m-3"))
        lease = begin(store)
        store.take(lease)
        assert commit(store, lease, take=False).taken is None
        assert kept(store, "m-2").attempt == 0
        store.take(lease)
        taken = commit(store, lease, "m-2").taken
        assert taken is not None
        assert taken.record is not None
        assert (taken.record.message_id, taken.record.attempt) == ("m-3", 1)

    def test_a_request_may_come_with_its_commit(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """As if it had been accepted before; the next one is begun with it."""
        lease = begin(store)
        accepted(store, request("m-2"))
        sent = request(params=b"[1]", attempt=1, created_at=5.5, started_at=6.5)
        done = commit(store, lease, request=sent, state=[SetValue("a", b"1")])
        assert done.outcome is CommitOutcome.COMMITTED
        assert done.taken is not None
        assert done.taken.record is not None
        assert done.taken.record.message_id == "m-2"
        record = kept(peer)
        assert record.status is RequestStatus.COMPLETED
        assert (record.created_at, record.started_at, record.attempt) == (5.5, 6.5, 1)
        assert (record.method, record.params) == ("run", b"")
        again = peer.accept(request(), Limits())
        assert again.outcome is Acceptance.DUPLICATE

    def test_a_request_that_comes_late_with_its_commit(
        self, store: IActorStore
    ) -> None:
        """Known and ended: nothing is kept. Known and pending: it is ended."""
        lease = begin(store)
        commit(store, lease, request=request(), data=b'"first"')
        late = commit(
            store, lease, request=request(), data=b'"x"', state=[SetValue("a", b"1")]
        )
        assert late.outcome is CommitOutcome.ENDED
        assert late.record is not None
        assert late.record.data == b'"first"'
        accepted(store, request("m-2"))
        done = commit(store, lease, "m-2", request=request("m-2", attempt=1))
        assert done.outcome is CommitOutcome.COMMITTED
        assert done.taken is not None
        assert done.taken.record is None
        assert kept(store, "m-2").status is RequestStatus.COMPLETED
        assert store.read(A).values == {}

    def test_a_commit_on_another_version_changes_nothing(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """The turn may be run again, and commit then."""
        accepted(store, request(), request("m-2"))
        lease = begin(store)
        store.take(lease)
        stale = store.read(A).etag
        fresh = peer.write(A, [SetValue("a", b"1")]).etag
        lost = commit(
            store,
            lease,
            etag=stale,
            state=[SetValue("a", b"2")],
            outbox=[Outgoing(request("o-1", B))],
            reminders=[SetReminder("tick", 1.0, "tick")],
            progress=_steps(1),
            dead="crash",
        )
        assert (lost.outcome, lost.etag) == (CommitOutcome.CONFLICT, fresh)
        assert lost.taken is None
        assert kept(store).status is RequestStatus.PENDING
        assert kept(store, "m-2").attempt == 0
        assert store.read(A).values == {"a": b"1"}
        later = store.now() + 60.0
        assert store.relay(later, 10).actors == []
        assert store.fire_reminders(later, 10).actors == []
        assert store.dead_letters(10) == []
        assert store.read_progress(A, "m-1", 0, 10) == []
        done = commit(store, lease, etag=fresh, state=[SetValue("a", b"2")])
        assert done.outcome is CommitOutcome.COMMITTED
        assert store.read(A).values == {"a": b"2"}

    def test_a_commit_after_the_end_changes_nothing(self, store: IActorStore) -> None:
        """The first end counts, and the next one begins."""
        accepted(store, request(deadline=store.now() + 60.0), request("m-2"))
        lease = begin(store)
        store.take(lease)
        assert len(store.expire(store.now() + 120.0, 10)) == 1
        late = commit(store, lease, state=[SetValue("a", b"1")])
        assert late.outcome is CommitOutcome.ENDED
        assert late.record is not None
        assert late.record.status is RequestStatus.EXPIRED
        assert late.taken is not None
        assert late.taken.record is not None
        assert late.taken.record.message_id == "m-2"
        assert kept(store).status is RequestStatus.EXPIRED
        assert store.read(A).values == {}

    def test_a_failure_may_be_a_dead_letter(self, store: IActorStore) -> None:
        """With what is needed to send it again."""
        accepted(store, request(params=b'{"n":7}', sender="echo/x"))
        lease = begin(store)
        store.take(lease)
        data = b'{"code":"c","error":"e","retryable":false}'
        commit(
            store, lease, status=RequestStatus.FAILED, data=data, dead="actor_stopped"
        )
        (letter,) = store.dead_letters(10)
        same = store.dead_letter(letter.id)
        assert same is not None
        assert fields_of(same.request) == fields_of(letter.request)
        assert (letter.reason, letter.attempts) == ("actor_stopped", 1)
        assert abs(letter.at - store.now()) < 60.0
        sent = letter.request
        assert (sent.actor_id, sent.message_id, sent.method) == (A, "m-1", "run")
        assert (sent.params, sent.sender) == (b'{"n":7}', "echo/x")
        assert sent.status is RequestStatus.FAILED
        assert kept(store).data == data

    def test_turns_of_many_actors_at_once(self, store: IActorStore) -> None:
        """Each request is taken once and ends once, in its order."""

        def run(number: int) -> list[str]:
            actor_id = ActorId("many", str(number))
            for n in range(5):
                accepted(store, request(f"m-{n}", actor_id))
            lease = begin(store, actor_id, f"w-{number}")
            taken = store.take(lease)
            seen: list[str] = []
            while taken is not None and taken.record is not None:
                seen.append(taken.record.message_id)
                ops = [SetValue(seen[-1], b"1")]
                done = commit(store, lease, seen[-1], state=ops)
                assert done.taken is not None
                taken = done.taken
            assert len(store.read(actor_id).values) == 5
            return seen

        assert in_threads(6, run) == [[f"m-{n}" for n in range(5)]] * 6

    # Steps.

    def test_steps_are_read_in_their_order(
        self, store: IActorStore, peer: IActorStore
    ) -> None:
        """From behind any of them, so many as are wanted."""
        accepted(store, request())
        lease = begin(store)
        store.take(lease)
        store.append_progress(lease, "m-1", _steps(1, 2, 3))
        store.append_progress(lease, "m-1", _steps(4))
        store.append_progress(lease, "m-1", [])
        assert peer.read_progress(A, "m-1", 0, 10) == _steps(1, 2, 3, 4)
        assert peer.read_progress(A, "m-1", 1, 2) == _steps(2, 3)
        assert peer.read_progress(A, "m-1", 4, 10) == []
        assert peer.read_progress(B, "m-1", 0, 10) == []
        assert kept(peer).position == 4

    def test_steps_that_come_again_are_kept_once(self, store: IActorStore) -> None:
        """As when it was not known whether they had been appended."""
        accepted(store, request())
        lease = begin(store)
        store.take(lease)
        store.append_progress(lease, "m-1", _steps(1, 2))
        store.append_progress(lease, "m-1", _steps(1, 2, 3))
        commit(store, lease, progress=_steps(3, 4))
        assert store.read_progress(A, "m-1", 0, 10) == _steps(1, 2, 3, 4)
        assert kept(store).position == 4

    def test_steps_are_for_what_is_pending(self, store: IActorStore) -> None:
        """What has ended, or is unknown, gets none."""
        accepted(store, request())
        lease = begin(store)
        store.take(lease)
        commit(store, lease, progress=_steps(1))
        store.append_progress(lease, "m-1", _steps(2))
        store.append_progress(lease, "m-9", _steps(1))
        assert store.read_progress(A, "m-1", 0, 10) == _steps(1)
        assert store.read_progress(A, "m-9", 0, 10) == []

    def test_the_next_turn_goes_on_with_the_steps(self, store: IActorStore) -> None:
        """It is told how many the log has."""
        accepted(store, request())
        lease = begin(store)
        store.take(lease)
        store.append_progress(lease, "m-1", _steps(1, 2))
        taken = store.take(begin(store)).record
        assert taken is not None
        assert (taken.attempt, taken.position) == (2, 2)

    def test_the_last_steps_are_kept(self, store: IActorStore) -> None:
        """So many of them, and so many bytes."""
        accepted(store, request(), request("m-2"))
        lease = begin(store)
        store.take(lease)
        store.append_progress(lease, "m-1", _steps(*range(1, 1030)))
        found = store.read_progress(A, "m-1", 0, 2000)
        assert (len(found), found[0].position) == (1024, 6)
        commit(store, lease)
        large = [ProgressItem(n, b'"%b"' % (b"x" * 299_998)) for n in range(1, 6)]
        store.append_progress(lease, "m-2", large)
        assert store.read_progress(A, "m-2", 0, 10) == large[2:]
