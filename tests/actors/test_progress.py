"""Steps of a request, for those who watch it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ppio_agent.actors import InMemoryStateStorage, RequestStatus
from ppio_agent.exceptions import InvalidMessageError, SerializationError
from tests.support import SLOW

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
