"""The app's built-in plug-in: an access log in debug mode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from ppio_agent.hooks import hookimpl

__all__ = ["log_access", "ppio_middleware"]

_log = logging.getLogger(__name__)


@hookimpl(trylast=True)
def ppio_middleware(app: Any) -> Sequence[Callable[..., Any]]:
    """Contribute the access log to an app in debug mode."""
    return [log_access] if app.config.debug else []


def log_access(request: Any, call_next: Callable[[], Any]) -> Any:
    """Log each invocation with its outcome, as middleware."""
    invocation = request.invocation
    facts = {
        "ppio_invocation_id": invocation.id,
        "ppio_request_id": request.context.request_id,
        "ppio_session_id": request.context.session_id,
    }
    try:
        response = call_next()
    except BaseException as error:
        outcome = type(error).__name__
        raise
    else:
        outcome = "a stream" if response.chunks is not None else "a result"
        return response
    finally:
        _log.info(
            "%s %s: %s after %.1f ms",
            request.path,
            invocation.handler.name,
            outcome,
            invocation.duration * 1000,
            extra=facts,
        )
