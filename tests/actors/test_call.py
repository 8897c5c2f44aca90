"""Requests that somebody waits for."""

from __future__ import annotations

import threading

import pytest

from ppio_agent.actors._call import Call, Calls
from ppio_agent.exceptions import RuntimeStoppedError
from ppio_agent.storage.actors.records import RequestRecord
from ppio_agent.wire.actors import RequestStatus

from .support import actor


def _call(calls: Calls, message_id: str = "m-1") -> Call:
    return calls.listed(actor(), message_id)[0]


def test_all_who_wait_for_one_request_share_a_call() -> None:
    """It leaves the list with the end, whose first telling counts."""
    calls = Calls()
    call = _call(calls)
    assert calls.listed(actor(), "m-1") == (call, False)
    assert (len(calls), calls.of_actor(actor("2"))) == (1, [])
    calls.end(actor(), "m-1", RequestStatus.COMPLETED, b"7", 3)
    calls.conclude(call, RequestStatus.FAILED, b"{}", 0)
    response = call.response()
    assert (response.status, response.data, response.position) == (
        RequestStatus.COMPLETED,
        7,
        3,
    )
    assert (len(calls), calls.enter(call)) == (0, None)


def test_waiters_and_watchers_are_woken_by_what_they_wait_for() -> None:
    """A step wakes only those who watch, the end all."""
    calls = Calls()
    call = _call(calls)
    waiter, watcher = calls.enter(call), calls.enter(call, steps=True)
    assert waiter is not None
    assert watcher is not None
    calls.moved(actor(), "m-1")
    assert (waiter.locked(), watcher.locked()) == (True, False)
    watcher = calls.enter(call, steps=True)
    left = calls.enter(call)
    assert watcher is not None
    assert left is not None
    calls.leave(call, left)
    told: list[int] = []
    assert calls.on_end(call, lambda: told.append(1))
    calls.end(actor(), "m-1", RequestStatus.COMPLETED, b"1")
    assert (waiter.locked(), watcher.locked(), left.locked()) == (False, False, True)
    assert told == [1]
    assert not calls.on_end(call, lambda: told.append(2))


def test_calls_that_nobody_waits_for_can_be_forgotten() -> None:
    """Those that somebody waits for stay, and those that are promised are looked at."""
    calls = Calls()
    idle, awaited, promised, late = (_call(calls, f"m-{n}") for n in range(4))
    calls.enter(awaited)
    calls.on_end(promised, lambda: None)
    assert calls.prune(before=late.since) == [promised]
    assert [c.listed for c in (idle, awaited, promised)] == [False, True, True]
    assert calls.all() == [awaited, promised, late]
    assert not calls.on_end(idle, lambda: None)


def test_a_call_that_two_have_sent_is_forgotten_when_both_are_refused() -> None:
    """The refusal of one of them keeps nothing from the other."""
    calls = Calls()
    call = _call(calls)
    assert calls.listed(actor(), "m-1") == (call, False)
    calls.refused(call)
    assert call.listed
    calls.refused(call)
    assert not call.listed
    assert len(calls) == 0


def test_who_sends_after_the_end_is_told_of_it() -> None:
    """Each waiter has an exception of its own."""
    calls = Calls()
    calls.abandon(lambda c: RuntimeStoppedError("stop", message_id=c.message_id))
    call = _call(calls)
    assert len(calls) == 0
    raised = []
    for _ in range(2):
        with pytest.raises(RuntimeStoppedError) as caught:
            call.response()
        raised.append(caught.value)
    assert raised[0] is not raised[1]


def test_what_the_store_says_is_told() -> None:
    """Also that it knows nothing, or no result any more."""
    calls = Calls()
    unknown, evicted, pending = (_call(calls, m) for m in ("m-1", "m-2", "m-3"))
    calls.conclude_as(unknown, None)
    assert unknown.response().status is RequestStatus.NOT_FOUND
    record = RequestRecord(actor(), "m-2", status=RequestStatus.COMPLETED, evicted=True)
    calls.end_as(record)
    assert evicted.response().data["code"] == "result_evicted"
    calls.conclude_as(pending, RequestRecord(actor(), "m-3"))
    assert not pending.over


def test_an_abandoned_call_raises_for_its_waiters() -> None:
    """Also for one that comes later."""
    calls = Calls()
    call = _call(calls)
    raised: list[str | None] = []
    lock = calls.enter(call)
    assert lock is not None

    def wait() -> None:
        assert lock.acquire(timeout=10)
        try:
            call.response()
        except RuntimeStoppedError as error:
            raised.append(error.message_id)

    waiter = threading.Thread(target=wait)
    waiter.start()
    calls.abandon(lambda c: RuntimeStoppedError("stop", message_id=c.message_id))
    waiter.join(10)
    assert raised == ["m-1"]
    assert calls.enter(call) is None
