"""How what became of a request is told."""

from __future__ import annotations

from typing import Any

import pytest

from ppio_agent.actors import ActorResponseMessage, RequestStatus
from ppio_agent.actors._answers import EVICTED, error_of, result_of
from ppio_agent.exceptions import (
    ActorFailedError,
    InvocationCancelledError,
    InvocationTimeoutError,
    NotFoundError,
    PPIOAgentError,
    RequestRejectedError,
)
from ppio_agent.wire.json import decode_json

from .support import actor


def _response(status: RequestStatus, data: Any = None) -> ActorResponseMessage:
    return ActorResponseMessage("m-1", sender_id=actor(), status=status, data=data)


def test_a_completed_request_has_a_result() -> None:
    """Whatever JSON value."""
    assert result_of(_response(RequestStatus.COMPLETED, {"x": 1})) == {"x": 1}
    assert result_of(_response(RequestStatus.COMPLETED)) is None


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (RequestStatus.FAILED, ActorFailedError),
        (RequestStatus.CANCELLED, InvocationCancelledError),
        (RequestStatus.EXPIRED, InvocationTimeoutError),
        (RequestStatus.REJECTED, RequestRejectedError),
        (RequestStatus.NOT_FOUND, NotFoundError),
    ],
)
@pytest.mark.parametrize(
    "data", [{"error": "why", "code": "c", "retryable": True}, None, "text", {}]
)
def test_any_other_end_is_an_error(
    status: RequestStatus, error: type[PPIOAgentError], data: Any
) -> None:
    """Typed by the status, with what is kept of it."""
    response = _response(status, data)
    with pytest.raises(error) as told:
        result_of(response)
    assert "m-1" in str(told.value)
    assert "t/1" in str(told.value)
    if isinstance(data, dict) and data:
        assert "why" in str(told.value)
        assert told.value.code == "c"
        assert told.value.retryable is (status is not RequestStatus.NOT_FOUND)


def test_a_result_that_is_no_longer_kept_is_not_found() -> None:
    """Although the request completed."""
    response = _response(RequestStatus.COMPLETED, decode_json(EVICTED))
    assert isinstance(error_of(response), NotFoundError)
    with pytest.raises(NotFoundError, match="no longer kept"):
        result_of(response)
