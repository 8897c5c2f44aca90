"""How many sandboxes may live, and how long. Pure."""

from __future__ import annotations

import math

from ppio_agent.exceptions import (
    SandboxLimitError,
    ServerBusyError,
    ServiceUnavailableError,
)

__all__ = ["admit", "extended_end", "retry_after", "stopping"]

_LONGEST_HINT = 60.0


def admit(
    *,
    tenant: int,
    total: int,
    tenant_limit: int,
    total_limit: int,
    next_end: float | None,
) -> None:
    """Let one more sandbox in, or refuse it.

    Args:
        tenant: Live sandboxes of the tenant, paused ones included.
        total: Live sandboxes of all tenants.
        tenant_limit: Most the tenant may have.
        total_limit: Most there may be.
        next_end: Seconds until a slot becomes free by itself, if that is known.

    Raises:
        SandboxLimitError: The tenant has as many as it may have.
        ServerBusyError: The platform is full.
    """
    if tenant >= tenant_limit:
        error = SandboxLimitError(
            f"all {tenant_limit} sandboxes of this key are in use: kill one first"
        )
        error.retry_after = retry_after(next_end)
        raise error
    if total >= total_limit:
        busy = ServerBusyError(
            f"all {total_limit} sandboxes of the platform are in use"
        )
        busy.retry_after = retry_after(next_end)
        raise busy


def stopping() -> ServiceUnavailableError:
    """Return the refusal of a platform that is being closed."""
    return ServiceUnavailableError(
        "the platform is stopping: it makes no more sandboxes", retry_after=1.0
    )


def retry_after(seconds: float | None) -> float:
    """Return the whole seconds to be hinted: at least 1, at most 60."""
    if seconds is None or seconds > _LONGEST_HINT:
        return _LONGEST_HINT
    return float(max(1, math.ceil(seconds)))


def extended_end(end: float, now: float, seconds: float) -> float:
    """Return the later of `end` and `seconds` from `now`: a life is only extended."""
    return max(end, now + seconds)
