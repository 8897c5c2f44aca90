"""Dead letters, and that their requests are sent again."""

from __future__ import annotations

from typing import Any

import pytest

from ppio_agent.exceptions import NotFoundError
from tests.support import SLOW, wait_until

from .support import Gate, actor, running


def echo(context: Any, message: Any) -> Any:
    return message.params


def test_letters_that_are_not_there() -> None:
    """They cannot be sent again, or removed."""
    with running(echo) as runtime:
        with pytest.raises(NotFoundError, match="no dead letter"):
            runtime.redrive("nothing")
        assert not runtime.discard("nothing")


def test_a_letter_is_sent_again_once_and_may_be_discarded() -> None:
    """Whoever asks for it at the same time has the same request."""
    gate = Gate()

    def receive(context: Any, message: Any) -> Any:
        if message.method == "hold":
            gate()
        return message.params

    with running(receive, mailbox_limit=2, mailbox_policy="drop_oldest") as runtime:
        client = runtime.client()
        client.send_request(actor(), "hold")
        gate.wait()
        for n in range(4):
            client.send_request(actor(), "go", {"n": n})
        first, second, third = runtime.dead_letters()
        assert [letter.reason for letter in (first, second)] == ["dropped"] * 2
        assert runtime.discard(second.id)
        assert runtime.discard(third.id)
        gate.opened.set()
        wait_until(lambda: runtime.inspect(actor())["queued"] == 0)
        handle = runtime.redrive(first.id)
        assert handle.result(5.0 * SLOW) == {"n": 0}
        assert handle.message_id != first.request.message_id
        with pytest.raises(NotFoundError):
            runtime.redrive(first.id)
        assert runtime.dead_letters() == []
