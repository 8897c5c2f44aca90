"""Requests that an actor sends to itself later."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from ppio_agent.actors import RuntimeOptions
from ppio_agent.exceptions import InvalidMessageError
from tests.support import SLOW, wait_until

from .support import Gate, actor, running

SLOWLY = RuntimeOptions(sweep_every=60.0)


class Ticks:
    """An actor's receive that notes the ticks it gets."""

    def __init__(self, first: Any) -> None:
        self.first = first
        self.got: list[tuple[float, Any]] = []

    def __call__(self, context: Any, message: Any) -> Any:
        if message.method == "tick":
            self.got.append((time.time(), message.params))
            return 1
        return self.first(context, message) or 1


def test_a_reminder_comes_at_its_time_and_says_what_it_is() -> None:
    """Exactly where this process set it, though the next sweep is far off."""
    ticks = Ticks(lambda c, _: c.set_reminder("r", 0.1, "tick", {"x": 1}))
    with running(ticks, runtime_options=SLOWLY) as runtime:
        began = time.time()
        runtime.client().ask(actor(), "go")
        wait_until(lambda: ticks.got)
        came, params = ticks.got[0]
        assert 0.1 <= came - began < 0.1 + 0.5 * SLOW
        assert (params["name"], params["missed"]) == ("r", 0)
        assert params["params"] == {"x": 1}
        assert params["due"] == pytest.approx(began + 0.1, abs=0.05 * SLOW)
        assert runtime.store.inspect(actor()).reminders == ()


def test_a_reminder_comes_again_in_its_phase_and_is_cancelled() -> None:
    """Each a period after the one before, and no more once it is forgotten."""

    def first(context: Any, message: Any) -> Any:
        if message.method == "stop":
            return context.cancel_reminder("r")
        return context.set_reminder("r", 0.0, "tick", period=1.0)

    ticks = Ticks(first)
    with running(ticks, runtime_options=SLOWLY) as runtime:
        runtime.client().ask(actor(), "go")
        wait_until(lambda: len(ticks.got) == 2)
        dues = [params["due"] for _, params in ticks.got]
        assert dues[1] - dues[0] == pytest.approx(1.0)
        assert ticks.got[1][0] - dues[1] < 0.5 * SLOW
        assert runtime.client().ask(actor(), "stop").data is True
        assert runtime.store.inspect(actor()).reminders == ()


def test_a_reminder_set_in_a_turn_that_failed_never_comes() -> None:
    """It was set with a commit that was not made; the same for what it cancelled."""

    def first(context: Any, message: Any) -> Any:
        context.set_reminder("r", 0.0, "tick")
        raise LookupError("no")

    ticks = Ticks(first)
    with running(ticks) as runtime:
        runtime.client().ask(actor(), "go")
        runtime.sweep()
        assert runtime.store.inspect(actor()).reminders == ()
        assert not ticks.got


def test_an_outage_makes_of_many_ticks_one() -> None:
    """It says how many it stands for, and those that follow keep the first's phase."""
    ticks = Ticks(lambda c, _: c.set_reminder("r", 0.2, "tick", period=1.0))
    with running(ticks) as runtime:
        store = runtime.store
        began = store.now()
        runtime.client().ask(actor(), "go")
        # As if the process had stood still for four seconds.
        later = began + 4.5
        assert store.fire_reminders(later, 100).actors == [actor()]
        runtime.engine.signal(actor())
        wait_until(lambda: ticks.got)
        params = ticks.got[0][1]
        assert params["missed"] >= 3
        assert (params["due"] - began) % 1.0 == pytest.approx(0.2, abs=0.1 * SLOW)


def test_reminders_may_come_only_so_often() -> None:
    """Those missed count too."""
    ticks = Ticks(lambda c, _: c.set_reminder("r", 0.0, "tick", period=1.0, count=1))
    with running(ticks) as runtime:
        runtime.client().ask(actor(), "go")
        wait_until(lambda: ticks.got)
        assert runtime.store.inspect(actor()).reminders == ()


def test_an_actor_has_only_so_many_reminders() -> None:
    """100; one more is refused, and one that is cancelled makes room."""

    def first(context: Any, message: Any) -> Any:
        count = message.params["count"]
        for number in range(count):
            context.set_reminder(f"r{number}", 1000.0, "tick")
        with pytest.raises(InvalidMessageError, match="100 reminders"):
            context.set_reminder("more", 1000.0, "tick")
        context.cancel_reminder("r0")
        return context.set_reminder("more", 1000.0, "tick")

    with running(Ticks(first)) as runtime:
        assert runtime.client().ask(actor(), "go", {"count": 100}).data == 1
        assert len(runtime.store.inspect(actor()).reminders) == 100


def test_what_is_replaced_or_was_never_set_does_not_count() -> None:
    """An actor with 100 may change one of them, and no names are there to be freed."""

    def first(context: Any, message: Any) -> Any:
        if message.method == "change":
            return context.set_reminder("r5", 2000.0, "tick")
        for number in range(50):
            context.cancel_reminder(f"nothing{number}")
        for number in range(100):
            context.set_reminder(f"r{number}", 1000.0, "tick")
        with pytest.raises(InvalidMessageError, match="100 reminders"):
            context.set_reminder("more", 1000.0, "tick")
        return 1

    with running(Ticks(first)) as runtime:
        for method in ("fill", "change"):
            assert runtime.client().ask(actor(), method).data == 1
        assert len(runtime.store.inspect(actor()).reminders) == 100


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 201}, "name"),
        ({"name": 1}, "name"),
        ({"due": -1.0}, "due"),
        ({"due": float("nan")}, "due"),
        ({"due": True}, "due"),
        ({"due": "soon"}, "due"),
        ({"due": 1e300}, "due"),
        ({"due": datetime(9999, 1, 1, tzinfo=timezone.utc)}, "due"),
        ({"due": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001 - refused
        ({"period": 0.5}, "period"),
        ({"period": float("inf")}, "period"),
        ({"period": True}, "period"),
        ({"count": 0}, "from 1"),
        ({"count": 1.5}, "from 1"),
        ({"count": 2**31}, "from 1"),
        ({"count": 10**5000}, "from 1"),
        ({"method": 1}, "method"),
        ({"params": [1]}, "mapping"),
    ],
)
def test_what_cannot_be_set_is_refused(change: dict[str, Any], why: str) -> None:
    """By an error that says what to give; all of them are `ValueError`."""
    errors: list[ValueError] = []

    def first(context: Any, message: Any) -> Any:
        given = {"name": "r", "due": 1.0, "method": "tick", "period": 1.0} | change
        try:
            context.set_reminder(
                given.pop("name"), given.pop("due"), given.pop("method"), **given
            )
        except InvalidMessageError as error:
            errors.append(error)
        return 1

    with running(Ticks(first)) as runtime:
        runtime.client().ask(actor(), "go")
    assert why in str(errors[0])


def test_an_instant_may_be_given() -> None:
    """Aware; one that has passed is now."""
    instants = [
        datetime.now(timezone.utc) - timedelta(days=1),
        datetime.now(timezone(timedelta(hours=5))) + timedelta(seconds=0.05),
    ]

    def first(context: Any, message: Any) -> Any:
        for number, instant in enumerate(instants):
            context.set_reminder(f"r{number}", instant, "tick")

    ticks = Ticks(first)
    with running(ticks) as runtime:
        runtime.client().ask(actor(), "go")
        wait_until(lambda: len(ticks.got) == 2)


# Timers.


def test_a_timer_comes_again_and_again_until_it_is_cancelled() -> None:
    """Each is a message of its own, with the parameters it was set with."""

    def first(context: Any, message: Any) -> Any:
        if message.method == "stop":
            return [context.cancel_timer("t"), context.cancel_timer("t")]
        return context.set_timer("t", 0.0, "tick", {"x": 1}, period=0.02)

    ticks = Ticks(first)
    with running(ticks, runtime_options=SLOWLY) as runtime:
        client = runtime.client()
        client.ask(actor(), "go")
        wait_until(lambda: len(ticks.got) >= 5)
        assert client.ask(actor(), "stop").data == [True, False]
        wait_until(lambda: runtime.stats()["pending"] == 0)
        count = len(ticks.got)
        client.ask(actor(), "stop")
        runtime.sweep()
        assert len(ticks.got) == count
        dues = [params["due"] for _, params in ticks.got]
        assert dues == sorted(set(dues))
        assert ticks.got[0][1]["params"] == {"x": 1}


def test_a_timer_that_is_set_again_replaces_the_earlier_one() -> None:
    """And one that comes once is gone then."""

    def first(context: Any, message: Any) -> Any:
        if message.method == "cancel":
            return context.cancel_timer("t")
        context.set_timer("t", 0.01, "tick", {"n": 1})
        return context.set_timer("t", 0.03, "tick", {"n": 2})

    ticks = Ticks(first)
    with running(ticks, runtime_options=SLOWLY) as runtime:
        runtime.client().ask(actor(), "go")
        wait_until(lambda: ticks.got)
        wait_until(lambda: runtime.stats()["pending"] == 0)
        assert [params["params"] for _, params in ticks.got] == [{"n": 2}]
        assert runtime.client().ask(actor(), "cancel").data == 1


def test_a_timer_whose_actor_is_busy_waits() -> None:
    """It never fills a mailbox: what it missed comes as one."""
    gate = Gate()

    def first(context: Any, message: Any) -> Any:
        context.set_timer("t", 0.0, "tick", period=0.01)
        gate()

    ticks = Ticks(first)
    with running(ticks, runtime_options=SLOWLY) as runtime:
        began = time.monotonic()
        handle = runtime.client().send_request(actor(), "go")
        gate.wait()
        wait_until(lambda: time.monotonic() - began > 0.15)
        assert runtime.inspect(actor())["queued"] == 1
        gate.opened.set()
        assert handle.result(5.0 * SLOW) == 1
        wait_until(lambda: len(ticks.got) >= 2)
        assert ticks.got[0][1]["missed"] + ticks.got[1][1]["missed"] >= 5


def test_timers_go_with_the_activation() -> None:
    """An actor that is let go is not woken by them."""
    ticks = Ticks(lambda c, _: c.set_timer("t", 0.3, "tick"))
    with running(ticks, runtime_options=SLOWLY, idle_timeout=0.01) as runtime:
        runtime.client().ask(actor(), "go")
        activation = runtime.engine.cells.find(actor()).activation
        timer = activation.timers["t"]
        wait_until(lambda: runtime.sweep() == 0 and runtime.stats()["live"] == 0)
        assert timer.ended
        assert activation.timers is None
        assert not ticks.got


def test_a_timer_tries_again_when_the_mailbox_is_full() -> None:
    """One that comes once is late rather than lost."""
    gate = Gate()

    def first(context: Any, message: Any) -> Any:
        context.set_timer("t", 0.0, "tick")
        gate()

    ticks = Ticks(first)
    with running(ticks, runtime_options=SLOWLY, mailbox_limit=1) as runtime:
        handle = runtime.client().send_request(actor(), "go")
        gate.wait()
        wait_until(lambda: runtime.engine.timers._aside.busy == 0)
        gate.opened.set()
        assert handle.result(5.0 * SLOW) == 1
        wait_until(lambda: ticks.got)


def test_an_actor_has_only_so_many_timers() -> None:
    """100 that wait, and none more often than each hundredth of a second."""

    def first(context: Any, message: Any) -> Any:
        with pytest.raises(InvalidMessageError, match=r"from 0\.01"):
            context.set_timer("t", 1.0, "tick", period=0.001)
        for number in range(100):
            context.set_timer(f"t{number}", 1000.0, "tick")
        with pytest.raises(InvalidMessageError, match="100 timers"):
            context.set_timer("more", 1000.0, "tick")
        context.set_timer("t5", 1000.0, "tick")
        assert context.cancel_timer("t6")
        return context.set_timer("more", 1000.0, "tick")

    with running(Ticks(first)) as runtime:
        assert runtime.client().ask(actor(), "go").data == 1
