"""How requests that ended without a result are told: `{"error", "code", "retryable"}`."""

from __future__ import annotations

from ppio_agent.wire.json import encode_json

__all__ = ["failure"]

_TEXTS: dict[str, tuple[str, bool]] = {
    "actor_stopped": ("the actor is stopped after too many crashes", True),
    "cancelled": ("the request was cancelled", False),
    "commit_failed": ("the store cannot keep what the turn has done", False),
    "crashed": ("each process that ran this request ended under it", False),
    "dropped": ("newer requests took its place in a full mailbox", True),
    "invocation_timeout": ("the request passed its deadline", False),
    "mailbox_full": ("the mailbox of the actor stayed full", True),
    "no_response": ("the actor ended its turn without a response", False),
    "result_too_large": ("the result is larger than 4 MiB of JSON", False),
    "runtime_stopped": ("the runtime was stopped", True),
    "state_conflict": ("the state was changed by others again and again", True),
    "superseded": ("a newer request took the place of this one", False),
}


def failure(code: str, error: str | None = None, *, retryable: bool = False) -> bytes:
    """Return the JSON that is kept of a request without a result.

    Args:
        code: What ended it; one that is known has its own text.
        error: What is told instead.
        retryable: Whether another request may succeed, for a code that is not known.
    """
    text, known_retryable = _TEXTS.get(code, (code, retryable))
    return encode_json(
        {"error": error or text, "code": code, "retryable": known_retryable}
    )
