"""How mistakes in requests, and requests that failed, are told over HTTP. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from ppio_agent.actors._answers import error_of, result_of
from ppio_agent.actors.runtime_abstractions import ActorResponseMessage
from ppio_agent.exceptions import (
    ActorFailedError,
    InvalidMessageError,
    PPIOAgentError,
    RuntimeStoppedError,
    ServiceUnavailableError,
    WireError,
    by_code,
)
from ppio_agent.wire.json import Json

__all__ = ["failed", "invalid", "outcome", "read_as"]

_T = TypeVar("_T")

_STEP = re.compile(r"\.([^.\[\]]+)|\[(\d+)\]")
# An agent's own credentials are no matter of its callers, nor are its long answers.
_NOT_THE_CALLERS = frozenset({401, 403})
_TOO_LARGE = frozenset({"result_too_large", "state_too_large"})


def read_as(read: Callable[[Json], _T], body: Json) -> _T:
    """Return what a reader makes of a body.

    Raises:
        InvalidMessageError: It has another shape.
    """
    try:
        return read(body)
    except WireError as error:
        place = ["body", *_places(error.path)]
        kind = "missing" if error.message == "is missing" else "value_error"
        raise invalid(place, error.message, kind) from error


def invalid(
    place: Sequence[str | int], text: str, kind: str = "value_error"
) -> InvalidMessageError:
    """Return the error of a request that cannot be used, in the shape of many servers.

    Args:
        place: Where: `body`, `path`, `query` or `header`, and what of it.
        text: What is wrong there.
        kind: In a word.
    """
    where = ".".join(map(str, place))
    return InvalidMessageError(
        f"{where}: {text}", errors=({"loc": list(place), "msg": text, "type": kind},)
    )


def _places(path: str) -> list[str | int]:
    """Return the steps of a path such as ``$.messages[0].role``."""
    return [
        name if name is not None else int(number)
        for name, number in (
            (found[1], found[2]) for found in _STEP.finditer(path.removeprefix("$"))
        )
    ]


def outcome(response: ActorResponseMessage) -> Any:
    """Return the result of a request that has ended.

    Raises:
        PPIOAgentError: It has none, or one that is no longer kept.
    """
    try:
        return result_of(response)
    except PPIOAgentError:
        raise failed(response) from None


def failed(response: ActorResponseMessage) -> PPIOAgentError:
    """Return the error as which a request without a result is answered.

    An actor may have failed it with any JSON: what has another form is left out.
    """
    data = response.data if isinstance(response.data, dict) else {}
    text, code, retryable = map(data.get, ("error", "code", "retryable"))
    response.data = {
        "error": text if isinstance(text, str) else None,
        "code": code if isinstance(code, str) and code else None,
        "retryable": retryable if isinstance(retryable, bool) else None,
    }
    error = error_of(response)
    # The id of the request is in a header, and whoever asked knows what.
    error.message = response.data["error"] or error.message
    if isinstance(error, ActorFailedError):
        error.http_status = _status_of(error.code, retryable=error.retryable)
    elif error.code == RuntimeStoppedError.code:  # not by anybody's wish
        error.http_status = RuntimeStoppedError.http_status
    return error


@lru_cache(maxsize=256)
def _status_of(code: str, *, retryable: bool) -> int:
    """Return the status of a failure, which is that of its cause where that has one."""
    cause = None if code in _TOO_LARGE else by_code(code)
    if cause is None and retryable:  # of an agent's own, such as `model_timeout`
        return ServiceUnavailableError.http_status
    if cause is None or cause.http_status in _NOT_THE_CALLERS:
        return ActorFailedError.http_status
    return cause.http_status
