"""What an invocation is sent with, and who gave it up."""

from __future__ import annotations

from typing import Any

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
    ("given", "why"),
    [
        ({"key": "two words"}, "an idempotency key has to be"),
        ({"headers": {"X-Invocation-Id": "a/b"}}, "X-Invocation-Id has to be"),
        ({"headers": {"idempotency-key": "mine"}}, "pass idempotency_key="),
        ({"headers": {"X-N": 3}}, "'X-N' has to be a text"),
        ({"headers": {3: "n"}}, "3 has to be a text"),
        ({"headers": {"bad name": "x"}}, "'bad name' is no name of a header"),
        ({"headers": {"X-N": "a\r\nb"}}, "X-N has a line break"),
        ({"headers": {"X-N": "\u4e2d"}}, "outside Latin-1"),
    ],
)
def test_what_cannot_be_sent_is_refused(given: dict[str, Any], why: str) -> None:
    """Before anything is sent, and with what to do."""
    with pytest.raises(ValidationError, match=why):
        call(**given)


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
    """An abort of the caller's own, not the end of all, nor a like error of others.

    Each that an abort ends gets a copy of the error.
    """
    aborted = call()
    aborted.handle.abort(error)

    with pytest.raises(type(error)) as raised:
        aborted.handle.check()

    assert raised.value is not error
    assert aborted.was_given_up(raised.value) is expected
    assert call().was_given_up(error) is False
    assert call().was_given_up(KeyboardInterrupt()) is True
