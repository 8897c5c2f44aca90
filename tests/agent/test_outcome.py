"""How an end is told: failures, terminal events, records."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ppio_agent.agent import InvocationState
from ppio_agent.agent.failure import Failure
from ppio_agent.agent.outcome import imposed_error, terminal_events
from ppio_agent.agent.states import Life
from ppio_agent.exceptions import ServerBusyError, ValidationError
from tests.agent.support import make_invocation

S = InvocationState


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no"), ("no", "ValueError", "invocation_failed", False, 500)),
        (KeyError(), ("KeyError", "KeyError", "invocation_failed", False, 500)),
        (
            SilentError(),
            ("SilentError", "SilentError", "invocation_failed", False, 500),
        ),
        (ValueError("\ud800"), ("?", "ValueError", "invocation_failed", False, 500)),
        (
            ValidationError("bad", request_id="r"),
            ("bad", "ValidationError", "validation_error", False, 400),
        ),
        (
            ServerBusyError(),
            ("ServerBusyError", "ServerBusyError", "server_busy", True, 503),
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_failure_has_the_facts_of_its_exception(
    error: BaseException, expected: tuple[object, ...]
) -> None:
    """Of our own tree its code and status, of any other none."""
    f = Failure.of(error)
    assert (f.error, f.error_type, f.code, f.retryable, f.http_status) == expected


def test_only_ends_that_user_code_did_not_choose_are_imposed() -> None:
    """The others have their own error, or none."""
    assert imposed_error(S.SUCCEEDED, "i", "client") is None
    assert imposed_error(S.CANCELLED, "i", None) is None
    timed_out = imposed_error(S.TIMED_OUT, "i", None)
    assert str(timed_out) == "invocation i passed its deadline"


def test_the_terminal_events_have_the_agreed_members() -> None:
    """In this order."""
    failure = Failure.of(ValueError("no"))
    facts: dict[str, Any] = {
        "invocation_id": "i",
        "request_id": "r",
        "duration": 0.5,
        "chunks": 2,
    }
    end, error = terminal_events(Life(S.FAILED, confirmed=True), failure, **facts)
    assert json.loads(error or b"") == {
        "error": "no",
        "error_type": "ValueError",
        "message": "no",
        "code": "invocation_failed",
        "retryable": False,
        "request_id": "r",
        "invocation_id": "i",
    }
    assert end == (
        b'{"status":"failed","invocation_id":"i","duration":0.5,'
        b'"events":2,"confirmed":true}'
    )
    assert terminal_events(Life(S.SUCCEEDED, confirmed=True), None, **facts)[1] is None


def test_a_record_has_the_members_of_the_wire() -> None:
    """In the order of the contract."""
    invocation = make_invocation(lambda _: {"a": 1})
    assert invocation.record().to_dict()["state"] == "pending"
    invocation.run()
    record = invocation.record().to_dict()
    assert list(record) == [
        "id", "state", "confirmed", "handler_running", "attempt", "entrypoint",
        "session_id", "created_at", "started_at", "finished_at", "duration", "stream",
        "events", "cancel", "result", "result_truncated", "late", "error",
    ]  # fmt: skip
    assert record["result"] == {"a": 1}
    assert record["events"] == {"first": 1, "last": 2}
    assert record["finished_at"].endswith("Z")


def test_a_failed_record_tells_error_and_cancel() -> None:
    """As objects."""
    invocation = make_invocation(lambda _: 1)
    invocation.cancel("shutdown")
    record = invocation.record().to_dict()
    assert record["cancel"]["reason"] == "shutdown"
    assert record["error"] == {
        "error": f"invocation {invocation.id} was cancelled: the server is shutting down",
        "error_type": "InvocationCancelledError",
        "code": "server_draining",
        "retryable": True,
    }
