"""When reminders come, and when outgoing requests are tried again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.storage.actors.records import SetReminder
from ppio_agent.storage.actors.schedule import (
    Tick,
    retry_delay,
    tick_id,
    tick_of,
    tick_request,
)
from ppio_agent.wire.actors import ActorId, check_message_id
from ppio_agent.wire.json import decode_json

_DUE = st.floats(1e9, 2e9)
_PERIOD = st.floats(1.0, 1e5)
_LATE = st.floats(0.0, 1e6)


def test_a_reminder_without_a_period_comes_once() -> None:
    """However late."""
    assert tick_of(10.0, None, None, 99.0) == Tick(10.0, 0, None, None)
    assert tick_of(10.0, None, 5, 99.0) == Tick(10.0, 0, None, None)


@settings(max_examples=100)
@given(_DUE, _PERIOD, _LATE)
def test_what_was_missed_comes_as_one(due: float, period: float, late: float) -> None:
    """The latest that is due comes, and the next is not due yet."""
    tick = tick_of(due, period, None, due + late)
    assert tick.next_due is not None
    nearly = 1e-6 * period + 1e-6
    assert due <= tick.due <= due + late + nearly
    assert tick.next_due > due + late - nearly
    assert abs(tick.next_due - tick.due - period) <= nearly
    assert abs(due + tick.missed * period - tick.due) <= nearly


@settings(max_examples=100)
@given(_DUE, _PERIOD, _LATE, st.integers(1, 10))
def test_so_many_come_in_all(
    due: float, period: float, late: float, count: int
) -> None:
    """Those that were missed count, and after the last there is none."""
    now, left = due + late, count
    come, next_due = 0, due
    while True:
        tick = tick_of(next_due, period, left, max(now, next_due))
        come += tick.missed + 1
        if tick.next_due is None:
            break
        assert tick.left is not None
        assert tick.left >= 1
        next_due, left = tick.next_due, tick.left
    assert come == count


def test_a_tick_has_one_id() -> None:
    """Of its name and time; others have others; it is a valid one."""
    ids = [tick_id("a", 1.0), tick_id("a", 1.5), tick_id("b", 1.0), tick_id("", 1.0)]
    assert len(set(ids)) == 4
    assert tick_id("a", 1.0) == ids[0]
    assert [check_message_id(id) for id in ids] == ids


def test_the_request_of_a_tick_tells_what_it_is_of() -> None:
    """With the parameters as they were given."""
    reminder = SetReminder('t"', 5.0, "tick", b'{"a":[1,null]}', period=2.0)
    record = tick_request(ActorId("a", "b"), reminder, Tick(9.0, 2, 11.0, None), 9.5)
    assert (record.method, record.created_at) == ("tick", 9.5)
    assert record.message_id == tick_id('t"', 9.0)
    told = {"name": 't"', "due": 9.0, "missed": 2, "params": {"a": [1, None]}}
    assert decode_json(record.params) == told


def test_delays_double_up_to_half_a_minute() -> None:
    """And stay there."""
    delays = [retry_delay(n) for n in range(1, 12)]
    assert delays[:4] == [0.1, 0.2, 0.4, 0.8]
    assert delays[-2:] == [30.0, 30.0]
    assert retry_delay(10_000) == 30.0
