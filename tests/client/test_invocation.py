"""What an agent is sent, and what its envelopes mean."""

from __future__ import annotations

from typing import Any

import pytest

from ppio_agent.client import InvocationRequest
from ppio_agent.client.invocation import (
    encode_request,
    envelope_error,
    is_envelope,
)
from ppio_agent.exceptions import (
    InvocationCancelledError,
    ValidationError,
)


class TestRequest:
    @pytest.mark.parametrize(
        ("request_", "body"),
        [
            ("Hi", b'{"prompt":"Hi"}'),
            ({"b": 1, "a": [True, None]}, b'{"b":1,"a":[true,null]}'),
            (
                InvocationRequest(prompt="Hi", stream=True, extra={"top_k": 3}),
                b'{"prompt":"Hi","stream":true,"top_k":3}',
            ),
            (InvocationRequest(), b"{}"),
        ],
    )
    def test_forms(self, request_: Any, body: bytes) -> None:
        """A prompt, an object as it is, the named members that were set."""
        assert encode_request(request_) == body

    @pytest.mark.parametrize("bad", [[1], None, 3, b"x", ("a",), object()])
    def test_other_types_are_refused(self, bad: Any) -> None:
        """The error names the type."""
        with pytest.raises(ValidationError, match=type(bad).__name__):
            encode_request(bad)


class TestEnvelope:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ({"result": None, "status": "error"}, True),
            ({"result": 1, "status": "success", "x": 2}, True),
            ({"result": 1}, False),
            ({"result": 1, "status": "done"}, False),
            ({"result": 1, "status": []}, False),
            ({"status": "error", "error": "agent bad"}, True),
            ({"status": "error", "error": {"code": 1}}, False),
            ({"status": "success", "error": "agent bad"}, False),
            ([], False),
            (None, False),
        ],
    )
    def test_is_told_from_a_bare_result(self, value: Any, *, expected: bool) -> None:
        """Both members, and a status of ours; a failure may have no result."""
        assert is_envelope(value) is expected

    def test_error_has_what_the_envelope_says(self) -> None:
        """Class by code, the agent's own type, ids and time."""
        error = envelope_error(
            {
                "result": None,
                "status": "error",
                "error": "stopped",
                "duration": 2,
                "metadata": {
                    "code": "cancelled",
                    "error_type": "Stop",
                    "invocation_id": "inv_1",
                    "retryable": True,
                },
            },
            status=499,
            request_id="req_1",
            redact=str,
        )

        assert type(error) is InvocationCancelledError
        assert (error.message, error.agent_error) == ("stopped", "Stop")
        assert (error.invocation_id, error.request_id) == ("inv_1", "req_1")
        assert (error.duration, error.status, error.retryable) == (2.0, 499, True)
