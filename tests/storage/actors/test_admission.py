"""Which requests get into a mailbox, and which turns are begun at all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.storage.actors.admission import admit, code_of, end_unbegun
from ppio_agent.storage.actors.records import (
    Acceptance,
    Cancellation,
    Limits,
    RequestRecord,
)
from ppio_agent.wire.actors import ActorId, RequestStatus

_LIMITS = st.builds(
    Limits,
    mailbox=st.integers(1, 5),
    drop_oldest=st.booleans(),
    pending=st.integers(1, 10),
    on_busy=st.sampled_from(["enqueue", "reject", "interrupt", "rollback"]),
)
_COUNT = st.integers(0, 6)


@settings(max_examples=100)
@given(_COUNT, st.integers(0, 1), _COUNT, _LIMITS)
def test_limits_are_never_passed(
    waiting: int, running: int, others: int, limits: Limits
) -> None:
    """What is accepted has a place; what is refused ends nobody."""
    pending = waiting + running + others
    outcome, leave = admit(waiting, running, pending, limits)
    assert 0 <= leave <= waiting
    if outcome is Acceptance.NEW:
        assert waiting - leave + running + 1 <= limits.mailbox
        assert pending - leave + 1 <= limits.pending
    else:
        assert leave == 0


@settings(max_examples=100)
@given(_COUNT, st.integers(0, 1), _LIMITS)
def test_who_is_in_the_way_decides(waiting: int, running: int, limits: Limits) -> None:
    """Nobody: the policy does not matter. Somebody: `reject` refuses."""
    outcome, leave = admit(waiting, running, waiting + running, limits)
    busy = waiting + running > 0
    assert (outcome is Acceptance.BUSY) == (busy and limits.on_busy == "reject")
    if outcome is Acceptance.NEW and limits.on_busy in {"interrupt", "rollback"}:
        assert leave == waiting


@pytest.mark.parametrize(
    ("waiting", "running", "limits", "expected"),
    [
        (2, 1, Limits(mailbox=3), (Acceptance.FULL, 0)),
        (2, 1, Limits(mailbox=3, drop_oldest=True), (Acceptance.NEW, 1)),
        (0, 1, Limits(mailbox=1, drop_oldest=True), (Acceptance.FULL, 0)),
        (1, 1, Limits(mailbox=3, drop_oldest=True), (Acceptance.NEW, 0)),
        (2, 1, Limits(mailbox=3, on_busy="rollback"), (Acceptance.NEW, 2)),
        (2, 0, Limits(pending=2), (Acceptance.OVERLOADED, 0)),
    ],
)
def test_some_cases(
    waiting: int, running: int, limits: Limits, expected: tuple[Acceptance, int]
) -> None:
    """As the docs have them."""
    assert admit(waiting, running, waiting + running, limits) == expected


def _record(**fields: object) -> RequestRecord:
    return RequestRecord(ActorId("a", "b"), "m-1", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (_record(), None),
        (_record(deadline=10.1, attempt=2), None),
        (_record(deadline=10.0), (RequestStatus.EXPIRED, "invocation_timeout")),
        (_record(attempt=3), (RequestStatus.FAILED, "crashed")),
        (
            _record(attempt=1, cancel=Cancellation.CANCEL),
            (RequestStatus.CANCELLED, "cancelled"),
        ),
        (
            _record(attempt=3, cancel=Cancellation.ROLLBACK),
            (RequestStatus.CANCELLED, "superseded"),
        ),
    ],
)
def test_a_turn_is_begun_or_its_request_ends(
    record: RequestRecord, expected: tuple[RequestStatus, str] | None
) -> None:
    """By its deadline, what was noted on it, and how often it was begun."""
    assert end_unbegun(record, 10.0, 3) == expected


def test_who_was_cancelled_and_who_superseded() -> None:
    """Only its caller cancels a request."""
    codes = [code_of(how) for how in Cancellation]
    assert codes == ["cancelled", "superseded", "superseded"]
