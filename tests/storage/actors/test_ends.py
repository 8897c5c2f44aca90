"""What is kept of requests that ended without a result."""

from __future__ import annotations

from ppio_agent.storage.actors.ends import failure
from ppio_agent.wire.json import decode_json


def test_a_known_code_has_its_own_text() -> None:
    """And says itself whether another request may succeed."""
    assert decode_json(failure("crashed")) == {
        "error": "each process that ran this request ended under it",
        "code": "crashed",
        "retryable": False,
    }
    assert decode_json(failure("actor_stopped"))["retryable"] is True
    assert decode_json(failure("actor_stopped", retryable=False))["retryable"] is True


def test_another_text_may_be_told() -> None:
    """The code stays what it is."""
    told = decode_json(failure("crashed", "the machine burnt down"))
    assert (told["error"], told["code"]) == ("the machine burnt down", "crashed")


def test_a_code_of_an_actor_is_its_own_text() -> None:
    """Unless there is one."""
    told = decode_json(failure("out_of_tea", retryable=True))
    assert told == {"error": "out_of_tea", "code": "out_of_tea", "retryable": True}
