"""Invocations found by id, and run once for a key."""

from __future__ import annotations

import threading
from typing import Any

import attrs
import pytest

from ppio_agent.agent import Invocation, InvocationRegistry
from ppio_agent.agent.progress import Step
from ppio_agent.agent.registry import RunKey
from ppio_agent.agent.ring import ReplayRing
from ppio_agent.exceptions import (
    ConflictError,
    IdempotencyConflictError,
    InvocationNotFoundError,
    ServerBusyError,
)
from ppio_agent.wire.models import Principal
from tests.agent.support import make_context, make_invocation, pool_of
from tests.support import SLOW, wait_until


def key(value: str = "k", body: bytes = b"{}", entrypoint: str = "main") -> RunKey:
    return RunKey.of(value, entrypoint=entrypoint, body=body)


def entered(
    registry: InvocationRegistry,
    agent: Any = lambda _: "x" * 8,
    *,
    run_key: RunKey | None = None,
    **fields: Any,
) -> Invocation:
    """Return what the registry gives for a new invocation."""
    invocation = make_invocation(
        agent, context=make_context(**fields), on_settled=registry.settled
    )
    return registry.admit(invocation, run_key).invocation


def test_an_invocation_is_found_while_it_runs_and_after() -> None:
    """Under its id."""
    registry = InvocationRegistry()
    invocation = entered(registry)
    assert registry.get(invocation.id) is invocation
    assert registry.live == 1
    invocation.run()
    assert registry.live == 0
    assert registry.get(invocation.id) is invocation


def test_an_unknown_id_says_so() -> None:
    """404."""
    with pytest.raises(InvocationNotFoundError, match="inv_x"):
        InvocationRegistry().get("inv_x")


def test_an_invocation_is_its_principals_alone() -> None:
    """Two may use the same id, and none sees the other's."""
    registry = InvocationRegistry()
    anna, ben = (
        entered(registry, invocation_id="mine", principal=Principal(name))
        for name in ("anna", "ben")
    )
    assert registry.get("mine", principal="anna") is anna
    assert registry.get("mine", principal="ben") is ben
    with pytest.raises(InvocationNotFoundError):
        registry.get("mine")


def test_one_key_is_one_run() -> None:
    """While it runs and after it; another body is refused, another key is another."""
    registry = InvocationRegistry()
    first = entered(registry, run_key=key())
    assert entered(registry, run_key=key()) is first
    first.run()
    assert entered(registry, run_key=key()) is first
    with pytest.raises(IdempotencyConflictError, match=first.id):
        entered(registry, run_key=key(body=b"[]"))
    assert entered(registry, run_key=key("other")) is not first
    alone = entered(registry, run_key=key(), principal=Principal("anna"))
    assert alone is not first


def test_a_chosen_id_is_a_key() -> None:
    """Without a fingerprint nobody can join it."""
    registry = InvocationRegistry()
    first = entered(registry, invocation_id="mine", run_key=key("mine"))
    again = entered(registry, invocation_id="mine", run_key=key("mine"))
    assert again is first
    with pytest.raises(IdempotencyConflictError):
        entered(registry, invocation_id="mine")


def test_who_joins_counts_as_a_reader() -> None:
    """The first one's leaving ends nothing."""
    registry = InvocationRegistry()
    first = entered(registry, run_key=key())
    entered(registry, run_key=key())
    first.leave()
    assert not first.context.cancelled
    first.leave()
    assert first.context.cancelled


def test_a_run_lost_with_its_caller_frees_its_key() -> None:
    """The next one is a further attempt; one still being cancelled has to be waited for."""
    registry = InvocationRegistry()
    with pool_of() as pool:
        first = entered(registry, lambda _, context: context.sleep(60), run_key=key())
        first.start(pool)
        first.progress.wait(Step.REACHED | Step.OVER, 5)
        first.cancel("disconnect")
        first.progress.wait(Step.SETTLED, 5)
        second = entered(registry, run_key=key())
    assert second is not first
    assert second.context.attempt == 2
    third = entered(registry, run_key=key())
    assert third is second


def test_a_run_still_being_cancelled_is_worth_another_try() -> None:
    """409, retryable, after a second."""
    import threading

    registry, gate = InvocationRegistry(), threading.Event()
    with pool_of() as pool:
        first = entered(registry, lambda _: gate.wait(5), run_key=key())
        first.start(pool)
        first.progress.wait(Step.REACHED | Step.OVER, 5)
        first.cancel("disconnect")
        with pytest.raises(ConflictError) as caught:
            entered(registry, run_key=key())
        gate.set()
    error = caught.value
    assert (error.code, error.retryable, error.retry_after) == (
        "still_cancelling",
        True,
        1.0,
    )


def test_what_was_never_started_is_never_recorded() -> None:
    """Refused for want of a slot: the key is as if it had not been used."""
    registry = InvocationRegistry()
    first = entered(registry, run_key=key())
    registry.withdraw(first)
    assert first.refuse(ConflictError("busy"))
    assert registry.live == 0
    assert entered(registry, run_key=key()) is not first
    with pytest.raises(InvocationNotFoundError):
        registry.get(first.id)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"max_kept": 2}, 2),
        ({"max_bytes": 20 * 3 + 9}, 3),  # 10 as JSON, and as much as an object
        ({"retention": 2.5}, 3),
    ],
)
def test_the_oldest_finished_go_first(limits: dict[str, Any], kept: int) -> None:
    """At the first limit; each finished one here is a second younger."""
    now = [0.0]
    registry = InvocationRegistry(clock=lambda: now[0], **limits)
    made = []
    for n in range(5):
        now[0] = float(n)
        invocation = entered(registry, run_key=key(str(n)))
        invocation.run()
        made.append(invocation)
    found = []
    for invocation in made:
        try:
            found.append(registry.get(invocation.id))
        except InvocationNotFoundError:
            continue
    assert found == made[-kept:]
    assert entered(registry, run_key=key("0")) is not made[0]


def test_a_running_one_is_never_dropped() -> None:
    """However many finish meanwhile."""
    registry = InvocationRegistry(max_kept=1, retention=0.0)
    running = entered(registry)
    for _ in range(3):
        entered(registry).run()
    assert registry.get(running.id) is running


def test_all_can_be_cancelled_at_once() -> None:
    """At a shutdown."""
    registry = InvocationRegistry()
    both = [entered(registry) for _ in range(2)]
    registry.cancel_all("shutdown")
    assert [one.cancel_reason for one in both] == ["shutdown", "shutdown"]
    assert registry.live == 0


def test_the_totals_are_over_all_that_is_kept() -> None:
    """Chunks count for ever, terminal entries and plain values are none."""
    registry = InvocationRegistry(max_kept=1)
    assert attrs.astuple(registry.totals()) == (0, 0, 0, 0)
    stream = entered(registry, lambda _: iter("abc"))
    with stream.ring.attach():
        assert registry.totals().readers == 1
        stream.run()
        assert registry.totals().chunks == 3
    plain = entered(registry)
    plain.run()
    assert registry.totals().size == plain.size
    assert plain.ring.last == 2  # its value and the end, for a reader of events
    totals = registry.totals()
    assert (totals.chunks, totals.readers) == (3, 0)


def test_the_totals_know_whose_user_code_still_runs() -> None:
    """Until that has ended."""
    registry = InvocationRegistry()
    leave = threading.Event()

    def stubborn(_: Any) -> Any:
        yield "a"
        leave.wait(10)
        yield "b"

    with pool_of() as pool:
        invocation = make_invocation(
            stubborn,
            context=make_context(timeout=0.1 * SLOW),
            on_settled=registry.settled,
        )
        registry.admit(invocation).invocation.start(pool)
        invocation.wait(5)
        assert registry.totals().abandoned == 1
        leave.set()
        invocation.progress.wait(Step.SETTLED, 5)
        wait_until(lambda: registry.totals().abandoned == 0)
        assert registry.totals().chunks == 1


def test_one_that_was_refused_may_be_asked_for_again() -> None:
    """It never began, so nothing of it is kept."""
    registry = InvocationRegistry()
    invocation = entered(registry)
    assert invocation.refuse(ServerBusyError("no place"))
    with pytest.raises(InvocationNotFoundError):
        registry.get(invocation.id)
    assert registry.live == 0
    assert entered(registry, invocation_id=invocation.id) is not invocation


def test_the_totals_are_added_up_without_the_lock() -> None:
    """Requests do not wait for whoever reads the metrics."""
    registry = InvocationRegistry()
    held: list[bool] = []

    class Ring(ReplayRing):
        @property
        def size(self) -> int:
            held.append(registry._lock.locked())
            return 3

    registry.admit(make_invocation(lambda _: 1, ring=Ring()))
    assert registry.totals().size == 3 + len(b"null")
    assert held == [False]
