"""What an invocation is sent with, and who gave it up."""

from __future__ import annotations

import pytest

from ppio_agent._util.clock import Deadline
from ppio_agent.client.call import Call
from ppio_agent.exceptions import (
    ClientClosedError,
    InvocationCancelledError,
    PPIOAgentError,
    SessionClosedError,
    ValidationError,
)


def call(*, key: str | None = None, headers: dict[str, str] | None = None) -> Call:
    return Call.make(b"", deadline=Deadline(None), idempotency_key=key, headers=headers)


def test_ids_are_made_up_for_each_call() -> None:
    """The same key may name one run; two calls never choose one id for theirs."""
    calls = [call(), call(), call(key="k"), call(key="k")]

    assert len({c.invocation_id for c in calls}) == 4
    assert len({c.idempotency_key for c in calls}) == 3


@pytest.mark.parametrize("name", ["X-Invocation-Id", "x-invocation-id"])
def test_a_chosen_id_is_kept(name: str) -> None:
    """Whatever the case of its header."""
    assert call(headers={name: "mine"}).invocation_id == "mine"


@pytest.mark.parametrize(
    "given", [{"key": "two words"}, {"headers": {"X-Invocation-Id": "a/b"}}]
)
def test_bad_ids_are_refused(given: dict[str, str]) -> None:
    """Before anything is sent."""
    with pytest.raises(ValidationError):
        call(**given)  # type: ignore[arg-type] - one of two forms


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InvocationCancelledError("not wanted"), True),
        (SessionClosedError("its sandbox ends anyway"), False),
        (ClientClosedError("nothing can be sent any more"), False),
    ],
)
def test_who_gives_up_is_told_by_what_ends_it(
    error: PPIOAgentError, *, expected: bool
) -> None:
    """An abort of the caller's own, not the end of all, nor a like error of others."""
    aborted = call()
    aborted.handle.abort(error)

    assert aborted.was_given_up(error) is expected
    assert aborted.was_given_up(type(error)("from elsewhere")) is False
    assert call().was_given_up(error) is False
    assert call().was_given_up(KeyboardInterrupt()) is True
