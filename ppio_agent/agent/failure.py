"""How an exception of user code is told to whoever called. Pure."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from ppio_agent.exceptions import InvocationError, PPIOAgentError
from ppio_agent.wire.json import well_formed

__all__ = ["Failure"]


@frozen(kw_only=True)
class Failure:
    """The facts of an exception that travel; its texts can always be encoded.

    Attributes:
        error: Its text; never empty.
        error_type: Name of its class.
        code: Machine-readable word.
        retryable: Whether the same call may succeed later.
        http_status: Status of an answer that says so.

    Thread safety: immutable.
    """

    error: str = field(converter=well_formed)
    error_type: str
    code: str = field(converter=well_formed)
    retryable: bool
    http_status: int

    @classmethod
    def of(cls, error: BaseException, *, expose: bool = True) -> Failure:
        """Return the facts of `error`; one outside our tree is `invocation_failed`.

        Args:
            error: The exception.
            expose: Whether the text of one outside our tree is told.
        """
        name = type(error).__name__
        if isinstance(error, PPIOAgentError):
            return cls(
                error=error.message or name,
                error_type=name,
                code=error.code,
                retryable=error.retryable,
                http_status=error.http_status,
            )
        return cls(
            error=(_text(error) or name) if expose else "agent failed",
            error_type=name,
            code=InvocationError.code,
            retryable=False,
            http_status=InvocationError.http_status,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return its JSON form in an invocation's record."""
        return {
            "error": self.error,
            "error_type": self.error_type,
            "code": self.code,
            "retryable": self.retryable,
        }


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - user code's __str__ may raise anything
        return ""
