"""Steps of a request, for those who watch it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ppio_agent.actors import (
    InMemoryStateStorage,
    RequestStatus,
    RuntimeOptions,
    _progress,
)
from ppio_agent.exceptions import (
    InvalidMessageError,
    InvocationCancelledError,
    LeaseLostError,
    SerializationError,
    StateTooLargeError,
)
from ppio_agent.storage.actors.records import ProgressItem
from tests.support import SLOW, wait_until

from .support import Gate, actor, running


class DurableMemory(InMemoryStateStorage):
    """A memory that says that it is durable, so that steps are told in batches."""

    durable = True


def _steps(updates: Any) -> list[Any]:
    """Return what was told, and last the final data."""
    told = []
    for update in updates:
        final = update.status is not RequestStatus.PENDING
        told.append(update.data if final else (update.position, update.data))
    return told


@pytest.mark.parametrize("store", [InMemoryStateStorage, DurableMemory])
def test_watchers_see_the_same_whenever_they_come(store: Any) -> None:
    """From the start, in the middle, after the end, or from a number on."""
    gate = Gate()

    def receive(context: Any, _message: Any) -> int:
        for n in range(250):
            context.progress(n)
        gate()
        for n in range(250, 500):
            context.progress(n)
        return 7

    with running(receive, storage=store()) as runtime, ThreadPoolExecutor(3) as pool:
        handle = runtime.client().send_request(actor(), "m")
        early = pool.submit(_steps, handle.watch_updates())
        gate.wait()
        middle = pool.submit(_steps, handle.watch_updates())
        resumed = pool.submit(_steps, handle.watch_updates(after=250))
        gate.opened.set()
        all_steps = [(n + 1, {"sequence": n + 1, "progress": n}) for n in range(500)]
        expected = [*all_steps, 7]
        assert early.result(20 * SLOW) == middle.result(20 * SLOW) == expected
        assert resumed.result(20 * SLOW) == [*all_steps[250:], 7]
        again = runtime.client().get_request(actor(), handle.message_id)
        assert _steps(again.watch_updates()) == expected
        assert _steps(again.watch_updates(after=500)) == [7]
        assert again.get_response().position == 500


@pytest.mark.parametrize("store", [InMemoryStateStorage, DurableMemory])
def test_a_step_is_seen_while_the_turn_runs(store: Any) -> None:
    """At once, also where the store is told of it later."""
    seen = threading.Event()

    def receive(context: Any, _message: Any) -> int:
        context.progress("first")
        assert seen.wait(10 * SLOW)
        return 1

    with running(receive, storage=store()) as runtime:
        updates = runtime.client().send_request(actor(), "m").watch_updates()
        assert next(updates).data == {"sequence": 1, "progress": "first"}
        seen.set()
        assert [one.data for one in updates] == [1]


def test_a_durable_store_is_told_after_a_moment() -> None:
    """So that other processes see it while the turn goes on."""
    store = DurableMemory()
    gate = Gate()

    def receive(context: Any, _message: Any) -> int:
        for n in range(40):
            context.progress(n)
        gate()
        return 1

    with running(receive, storage=store) as runtime:
        handle = runtime.client().send_request(actor(), "m")
        gate.wait()
        tick = threading.Event()
        for _ in range(int(500 * SLOW)):
            kept = store.read_progress(actor(), handle.message_id, 0, 100)
            if len(kept) == 40:
                break
            tick.wait(0.01)
        assert [item.position for item in kept] == list(range(1, 41))
        gate.opened.set()
        assert handle.result(5 * SLOW) == 1


def test_numbers_of_an_actor_only_go_up() -> None:
    """A step whose number is not above the last one is dropped."""

    def receive(context: Any, message: Any) -> int:
        for number in (5, 5, 3, 9):
            context.on_progress_update(message.message_id, number, f"n{number}")
        context.progress("next")
        return 1

    with running(receive) as runtime:
        updates = runtime.client().send_request(actor(), "m").watch_updates()
        told = [one.data for one in updates][:-1]
        assert told == [
            {"sequence": 5, "progress": "n5"},
            {"sequence": 9, "progress": "n9"},
            {"sequence": 10, "progress": "next"},
        ]


def test_a_watcher_that_is_far_behind_is_told_of_the_gap() -> None:
    """The last steps are kept; also of a request that nobody could watch."""
    ids: list[str] = []

    def receive(context: Any, message: Any) -> int:
        ids.append(message.message_id)
        for n in range(1100):
            context.progress(n)
        return 1

    with running(receive) as runtime:
        client = runtime.client()
        client.ask(actor(), "m")
        client.send_request(actor(), "m").result(10 * SLOW)
        for message_id in ids:
            told = _steps(client.get_request(actor(), message_id).watch_updates())
            assert told[0] == (76, {"gap": 76})
            assert told[1] == (77, {"sequence": 77, "progress": 76})
            assert len(told) == 1 + 1024 + 1


def test_steps_of_others_or_without_json_are_refused() -> None:
    """As errors in the actor."""
    errors: list[type] = []

    def receive(context: Any, message: Any) -> int:
        for message_id, data in (("other", 1), (message.message_id, object())):
            try:
                context.on_progress_update(message_id, 1, data)
            except (InvalidMessageError, SerializationError) as error:
                errors.append(type(error))
        return 1

    with running(receive) as runtime:
        runtime.client().ask(actor(), "m")
    assert errors == [InvalidMessageError, SerializationError]


def test_a_turn_that_is_run_again_says_that_the_steps_before_are_void() -> None:
    """Here after a conflict."""
    store = InMemoryStateStorage()
    turns: list[int] = []

    def receive(context: Any, _message: Any) -> int:
        context.read_state("x")
        turns.append(1)
        context.progress(len(turns))
        if len(turns) == 1:
            store.write_state(actor(), {"x": 1})
        context.write_state("y", 1)
        return 1

    with running(receive, storage=store) as runtime:
        updates = runtime.client().send_request(actor(), "m").watch_updates()
        assert [one.data for one in updates] == [
            {"sequence": 1, "progress": 1},
            {"restart": 1},
            {"sequence": 1, "progress": 2},
            1,
        ]


class Flaky(DurableMemory):
    """A durable memory whose log of steps can be out of order.

    Attributes:
        fails: What it raises when it is told of steps; None: nothing.
        hangs: What it waits for when it is told of steps; None: nothing.
        tried: How often it was told of steps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fails: Exception | None = None
        self.hangs: threading.Event | None = None
        self.tried = 0

    def append_progress(self, *args: Any) -> None:
        self.tried += 1
        if self.hangs is not None:
            assert self.hangs.wait(10 * SLOW)
        if self.fails is not None:
            raise self.fails
        super().append_progress(*args)


@pytest.mark.parametrize("durable", [True, False])
def test_a_store_that_fails_for_a_while_gets_the_steps_later(*, durable: bool) -> None:
    """With those that follow, or with the commit; the actor is not told of it."""
    store = Flaky()
    store.durable = durable

    def receive(context: Any, message: Any) -> int:
        store.fails = OSError("disk")
        for n in range(100):
            context.progress(n)
        if message.method == "recovers":
            store.fails = None
        for n in range(100, 150):
            context.progress(n)
        return 1

    with running(receive, storage=store) as runtime:
        for method in ("recovers", "stays"):
            handle = runtime.client().send_request(actor(), method)
            assert handle.result(5 * SLOW) == 1
            told = store.read_progress(actor(), handle.message_id, 0, 1000)
            assert [item.position for item in told] == list(range(1, 151))
        assert runtime.engine.supervisor.stopped_for(actor()) == 0.0
        assert store.tried < 400


def test_a_turn_waits_when_its_store_is_far_behind() -> None:
    """What is seen and not stored is bounded, while its store hangs."""
    store = Flaky()
    told: list[int] = []

    def receive(context: Any, _message: Any) -> int:
        context.progress(0)
        wait_until(lambda: store.tried > 0)  # and hangs, on another thread
        for n in range(1, 300):
            context.progress(n)
            told.append(n)
        return 1

    with running(receive, storage=store) as runtime:
        store.hangs = threading.Event()
        handle = runtime.client().send_request(actor(), "m")
        wait_until(lambda: len(told) == _progress._AHEAD - 2)
        assert handle.try_get_response() is None
        store.hangs.set()
        assert handle.result(5 * SLOW) == 1
        assert len(told) == 299


def test_a_turn_that_waits_for_its_store_can_be_cancelled() -> None:
    """As one that waits for anything else."""
    store = Flaky()
    store.fails = OSError("disk")

    def receive(context: Any, _message: Any) -> int:
        while True:
            context.progress("x" * 10_000)

    with running(receive, storage=store) as runtime:
        handle = runtime.client().send_request(actor(), "m")
        wait_until(lambda: store.tried > 3)
        handle.cancel()
        assert handle.get_response(5 * SLOW).status is RequestStatus.CANCELLED


@pytest.mark.parametrize("durable", [True, False])
def test_a_lost_lease_ends_the_turn_that_tells_steps(*, durable: bool) -> None:
    """By `InvocationCancelledError`, and is no crash of the actor."""
    store = Flaky()
    store.durable = durable
    errors: list[type] = []

    def receive(context: Any, _message: Any) -> int:
        if not errors:
            store.fails = LeaseLostError("gone")
            try:
                for n in range(100):
                    context.progress(n)
            except InvocationCancelledError as error:
                errors.append(type(error))
                store.claim(runtime.engine.worker, actor())  # with another token
                store.fails = None
                raise
        return 1

    quick = RuntimeOptions(sweep_every=0.05)
    with running(receive, storage=store, runtime_options=quick) as runtime:
        handle = runtime.client().send_request(actor(), "m")
        assert handle.result(5 * SLOW) == 1
        assert errors == [InvocationCancelledError]
        crashes = runtime.engine.supervisor
        assert crashes.stopped_for(actor()) == 0.0


def test_a_turn_that_is_run_again_begins_above_all_that_was_seen() -> None:
    """Also above what no store knows, so that who goes on from there misses nothing."""
    store = Flaky()
    seen: list[int] = []

    def dies(context: Any, _message: Any) -> None:
        context.progress("old")
        context.cancelled.wait(10 * SLOW)
        context.check()

    with running(dies, storage=store) as runtime:
        store.fails = OSError("disk")
        handle = runtime.client().send_request(actor(), "m")
        seen += [one.position for one in handle.read_updates(0, 5 * SLOW)]
        runtime.stop(0.0)
    assert seen == [1]
    store.fails = None

    def again(context: Any, _message: Any) -> int:
        context.progress("new")
        return 7

    with running(again, storage=store) as runtime:
        handle = runtime.client().get_request(actor(), handle.message_id)
        assert handle.result(5 * SLOW) == 7
        for after in (0, *seen):
            told = [one.data for one in handle.watch_updates(after)]
            assert told == [{"restart": 2}, {"sequence": 1, "progress": "new"}, 7]


def test_a_step_may_be_as_large_as_stores_keep() -> None:
    """One that is larger is refused; the largest is kept, also if nobody can watch."""
    errors: list[str] = []
    most = _progress.MAX_STEP

    def receive(context: Any, message: Any) -> str:
        try:
            context.progress("x" * (most + 1))
        except StateTooLargeError as error:
            errors.append(error.code)
        context.progress("x" * (most - len('{"sequence":1,"progress":""}')))
        return str(message.message_id)

    with running(receive) as runtime:
        client = runtime.client()
        asked = client.ask(actor(), "m").data
        sent = client.send_request(actor(), "m").result(5 * SLOW)
        for message_id in (asked, sent):
            first = next(client.get_request(actor(), message_id).watch_updates())
            assert first.data["sequence"] == 1
    assert errors == ["state_too_large"] * 2


def test_a_step_larger_than_all_that_is_kept_is_not_kept() -> None:
    """Nor are all others because of it."""
    small, large = ProgressItem(1, b"x"), ProgressItem(2, b"x" * (1024 * 1024 + 1))
    assert _progress._last_of([small, large]) == []
    assert _progress._last_of([large, small]) == [small]
