"""What belongs to Flask, known without importing it: its answers and its errors.

Whoever returns a Flask response has imported Flask; for all others it stays out.
"""

from __future__ import annotations

import sys
from typing import Any

from ppio_agent.wire.json import encode_json

__all__ = ["encode_result", "http_error", "is_response"]


def is_response(value: Any) -> bool:
    """Whether it is a Flask (or werkzeug) response."""
    module = sys.modules.get("werkzeug.wrappers")
    return module is not None and isinstance(value, module.Response)


def http_error(error: BaseException) -> tuple[int, str] | None:
    """Return status and text of an `HTTPException` of werkzeug's; None for others."""
    module = sys.modules.get("werkzeug.exceptions")
    if module is None or not isinstance(error, module.HTTPException):
        return None
    answer = error.response  # of `abort(response)`
    if answer is not None:
        return answer.status_code, answer.get_data(as_text=True) or error.name
    return error.code or 500, error.description or error.name


def encode_result(value: Any) -> bytes:
    """Return a handler's result as JSON; of a response, its text.

    The response is read to its end here, so that a replay gives the same.
    """
    if is_response(value):
        value.freeze()
        return encode_json(value.get_data().decode("utf-8", "replace"))
    return encode_json(value)
