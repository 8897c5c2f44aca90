"""What plug-ins are told of the attempts of one call."""

from __future__ import annotations

import time
from typing import Any

from ppio_agent._util.redact import Redactor
from ppio_agent.exceptions import PPIOAgentError
from ppio_agent.hooks import ClientHooks, RequestEvent, ResponseEvent, RetryEvent
from ppio_agent.wire.headers import SESSION_ID

from .messages import Request, Response

__all__ = ["Observer"]

_OF_SANDBOXES = frozenset({"agent", "envd", "sandbox"})


class Observer:
    """Tells the plug-ins of one call; made only if there are any that want to know.

    Args:
        hooks: Whom to tell.
        redactor: Applied to whatever the peer or the caller chose.
        request_id: Of the call.

    Thread safety: one thread at a time.
    """

    def __init__(self, hooks: ClientHooks, redactor: Redactor, request_id: str) -> None:
        self._hooks = hooks
        self._redactor = redactor
        self._request_id = redactor.text(request_id)
        self._about: dict[str, Any] = {}
        self._began = 0.0

    def began(self, request: Request, attempt: int) -> None:
        """Say that an attempt begins."""
        text = self._redactor.text
        of_sandbox = request.kind in _OF_SANDBOXES
        session = {name.lower(): name for name in request.headers}.get(
            SESSION_ID.lower()
        )
        self._about = {
            "method": request.method,
            "url": self._redactor.url(request.url),
            "kind": request.kind,
            "request_id": self._request_id,
            "attempt": attempt,
            "sandbox_id": text(request.subject) or None if of_sandbox else None,
            "session_id": None if session is None else text(request.headers[session]),
        }
        self._began = time.monotonic()
        if self._hooks.request is not None:
            self._hooks.request(
                RequestEvent(**self._about, size=len(request.body or b""))
            )

    def answered(self, status: int, result: object) -> None:
        """Say that there is an answer: whole, or the head of a stream."""
        size = len(result.body) if isinstance(result, Response) else None
        self._ended(status=status, size=size)

    def failed(self, error: BaseException) -> None:
        """Say that there is no answer, or not all of it."""
        self._ended(status=None, size=None, error=type(error).__name__)

    def _ended(self, **how: Any) -> None:
        if self._hooks.response is not None:
            seconds = time.monotonic() - self._began
            self._hooks.response(ResponseEvent(**self._about, seconds=seconds, **how))

    def retries(
        self, error: type[PPIOAgentError], status: int | None, delay: float
    ) -> None:
        """Say that another attempt will follow."""
        if self._hooks.retry is not None:
            self._hooks.retry(
                RetryEvent(
                    **self._about, error=error.__name__, status=status, delay=delay
                )
            )
