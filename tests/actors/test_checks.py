"""What programs give: taken, or refused where it is given, by an error that helps."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.actors import (
    ActorId,
    ActorMessageType,
    ActorRequestMessage,
    InProcessActorRuntime,
    RequestStatus,
)
from ppio_agent.actors._checks import check_count, check_seconds, seconds_until
from ppio_agent.exceptions import (
    InvalidActorIdError,
    InvalidMessageError,
    PPIOAgentError,
)
from ppio_agent.wire.actors import MAX_COUNT, MAX_SECONDS
from tests.support import SLOW

from .support import actor, running

_NO_TIMES = [math.nan, math.inf, -1.0, 1e12, 1e300, 10**400, 10**5000, "5", True, b"1"]


@given(
    st.one_of(st.floats(), st.integers(), st.text(max_size=3), st.booleans(), st.none())
)
def test_a_time_is_a_number_of_seconds_in_bounds(value: object) -> None:
    """Whatever else is refused by one and the same error."""
    number = type(value) in (int, float)
    if number and 0 <= value <= MAX_SECONDS:  # type: ignore[operator] # a number
        assert check_seconds("timeout", value) == value
        return
    with pytest.raises(InvalidMessageError, match="timeout is"):
        check_seconds("timeout", value)


@pytest.mark.parametrize("value", [-1, MAX_COUNT + 1, 1.0, True, "1", None])
def test_a_count_is_a_whole_number_in_bounds(value: object) -> None:
    """Which every store can keep."""
    assert check_count("limit", MAX_COUNT) == MAX_COUNT
    with pytest.raises(InvalidMessageError, match="limit is"):
        check_count("limit", value)


def _answer(_context: Any, message: Any) -> Any:
    return message.params or 1


_Use = Callable[[InProcessActorRuntime, Any], Any]
_USES: dict[str, _Use] = {
    "ask deadline": lambda r, v: r.client().ask(actor(), "m", deadline=v),
    "ask timeout": lambda r, v: r.client().ask(actor(), "m", timeout=v),
    "send deadline": lambda r, v: r.client().send_request(actor(), "m", deadline=v),
    "send block": lambda r, v: r.client().send_request(actor(), "m", block=v),
    "get_response": lambda r, v: _sent(r).get_response(v),
    "result": lambda r, v: _sent(r).result(v),
    "cancel": lambda r, v: _sent(r).cancel(v),
    "stop": lambda r, v: r.stop(v),
    "run_actor": lambda r, v: r.run_actor(actor(), v),
}


def _sent(runtime: InProcessActorRuntime) -> Any:
    return runtime.client().send_request(actor(), "m")


def test_callers_give_times_that_can_be_used() -> None:
    """Else nothing is sent, and nobody waits."""
    with running(_answer) as runtime:
        for use in _USES.values():
            for value in _NO_TIMES:
                with pytest.raises(InvalidMessageError, match="number of seconds"):
                    use(runtime, value)
        with pytest.raises(InvalidMessageError, match="after is"):
            _sent(runtime).watch_updates("1")
        assert runtime.running
        assert runtime.client().ask(actor(), "m", deadline=60.0).data == 1


_IN_TURNS: dict[str, Callable[[Any, Any], Any]] = {
    "timeout": lambda c, v: c.ask(actor("2"), "m", timeout=v),
    "delay": lambda c, v: c.tell(actor("2"), "m", delay=v),
    "due": lambda c, v: c.set_timer("t", v, "m"),
    "period": lambda c, v: c.set_timer("t", 1.0, "m", period=v),
}


def test_turns_give_times_that_can_be_used() -> None:
    """An actor that does not is told, and does not crash."""
    refused: list[str] = []

    def receive(context: Any, message: Any) -> Any:
        if message.method != "go":
            return 1
        for name, use in _IN_TURNS.items():
            for value in _NO_TIMES:
                with pytest.raises(InvalidMessageError, match=f"{name} is"):
                    use(context, value)
                refused.append(name)
        with pytest.raises(InvalidActorIdError, match="t/2"):
            context.tell("t/2", "m")
        with pytest.raises(InvalidActorIdError, match="t/2"):
            context.ask("t/2", "m")
        return 2

    with running(receive) as runtime:
        assert runtime.client().ask(actor(), "go").data == 2
    assert len(refused) == len(_IN_TURNS) * len(_NO_TIMES)


@pytest.mark.parametrize(
    "use",
    [
        lambda r, a: r.client().ask(a, "m"),
        lambda r, a: r.client().send_request(a, "m"),
        lambda r, a: r.client().get_request(a, "i"),
        lambda r, a: r.get_or_create_actor(a),
        lambda r, a: r.inspect(a),
        lambda r, a: r.delete_actor(a),
        lambda r, a: r.run_actor(a),
    ],
)
def test_the_text_of_an_address_is_none(use: _Use) -> None:
    """And the error says what makes one of it."""
    with running(_answer) as runtime:
        with pytest.raises(InvalidActorIdError, match=r"'t/1' .* ActorId\.parse"):
            use(runtime, "t/1")
        with pytest.raises(InvalidActorIdError, match="5 is no ActorId"):
            use(runtime, 5)


@pytest.mark.parametrize("method", ["", "x" * 201, 5, "a\0b"])
def test_a_method_has_a_name_that_stores_can_keep(method: Any) -> None:
    """Of 1 to 200 characters, from wherever it is called."""
    errors: list[PPIOAgentError] = []

    def receive(context: Any, message: Any) -> Any:
        if message.method == "go":
            with pytest.raises(InvalidMessageError, match="1 to 200") as caught:
                context.tell(actor("2"), method)
            errors.append(caught.value)
        return 1

    with running(receive) as runtime:
        with pytest.raises(InvalidMessageError, match="1 to 200"):
            runtime.client().ask(actor(), method)
        assert runtime.client().ask(actor(), "é" * 200).data == 1
        assert runtime.client().ask(actor(), "go").data == 1
    assert len(errors) == 1


def test_dead_letters_are_asked_for_by_a_number() -> None:
    """One that is not negative."""
    with running(_answer) as runtime:
        assert runtime.dead_letters(0) == []
        with pytest.raises(InvalidMessageError, match="limit is -1"):
            runtime.dead_letters(-1)


# Whole messages.

_TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_a_message_goes_on_as_it_is() -> None:
    """With where it came from, in its trace, and till its deadline."""
    seen: list[ActorRequestMessage] = []

    def receive(_context: Any, message: ActorRequestMessage) -> Any:
        seen.append(message)
        return 1

    until = datetime.now(timezone(timedelta(hours=5))) + timedelta(seconds=60.0)
    with running(receive) as runtime:
        message = ActorRequestMessage(
            method="m",
            params={"a": 1},
            sender_id=ActorId("other", "1"),
            chain=("other/0", "other/1"),
            traceparent=_TRACE,
            deadline=until,
        )
        hold = runtime.get_or_create_actor(actor()).send_request(message)
        assert hold.message_id == message.message_id
        assert hold.get_response(10.0 * SLOW).data == 1
        late = ActorRequestMessage(
            method="m", traceparent="none", deadline=until - timedelta(days=1)
        )
        hold = runtime.get_or_create_actor(actor()).send_request(late)
        assert hold.get_response(10.0 * SLOW).status is RequestStatus.EXPIRED
    (got,) = seen
    assert (got.message_id, got.method, got.params) == (
        message.message_id,
        "m",
        {"a": 1},
    )
    assert (got.sender_id, got.chain) == (message.sender_id, message.chain)
    assert got.traceparent == _TRACE
    assert got.deadline is not None
    assert abs(got.deadline - until) < timedelta(seconds=10.0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"message_type": ActorMessageType.RESPONSE}, "message_type"),
        ({"message_id": "a b"}, "message id"),
        ({"method": ""}, "method"),
        ({"params": [1]}, "mapping"),
        ({"sender_id": "t/1"}, "sender_id"),
        ({"chain": "t/1"}, "chain"),
        ({"chain": ("t1",)}, "chain"),
        ({"chain": (5,)}, "chain"),
        ({"chain": ("t/1",) * 33}, "chain"),
        ({"traceparent": 5}, "traceparent"),
        ({"deadline": 5.0}, "deadline"),
        ({"deadline": datetime(2026, 1, 1)}, "time zone"),  # noqa: DTZ001 - refused
        ({"deadline": datetime(9999, 1, 1, tzinfo=timezone.utc)}, "deadline"),
    ],
)
def test_a_message_that_makes_no_sense_is_refused(
    change: dict[str, Any], why: str
) -> None:
    """Before anything of it is stored."""
    message = ActorRequestMessage(**({"method": "m"} | change))
    with running(_answer) as runtime:
        hold = runtime.get_or_create_actor(actor())
        with pytest.raises(InvalidMessageError, match=why):
            hold.send_request(message)
        with pytest.raises(InvalidMessageError, match="no request"):
            hold.send_request({"method": "m"})  # type: ignore[arg-type] # refused
        assert runtime.stats()["pending"] == runtime.stats()["awaited"] == 0


def test_a_deadline_that_has_passed_is_now() -> None:
    """Not before now."""
    passed = datetime(2020, 1, 1, tzinfo=timezone.utc)
    assert seconds_until(passed, 2e9) == 0.0
    assert seconds_until(None, 0.0) is None
