"""What failed requests are over HTTP."""

from __future__ import annotations

import pytest

from ppio_agent.actors.http.errors import failed
from ppio_agent.wire.actors import ActorResponseMessage, RequestStatus


@pytest.mark.parametrize(
    ("code", "retryable", "status"),
    [
        ("result_too_large", False, 500),
        ("state_too_large", False, 500),
        ("request_too_large", False, 413),
        ("commit_failed", False, 500),
        ("unauthorized", False, 500),
        ("model_timeout", True, 503),
        ("own_code", False, 500),
    ],
)
def test_a_failure_has_the_status_of_whose_it_is(
    code: str,
    retryable: bool,
    status: int,
) -> None:
    """An answer that is too long is the agent's, not its caller's."""
    data = {"error": "it failed", "code": code, "retryable": retryable}
    response = ActorResponseMessage("m", status=RequestStatus.FAILED, data=data)
    error = failed(response)
    assert (error.http_status, error.code, error.message) == (status, code, "it failed")
