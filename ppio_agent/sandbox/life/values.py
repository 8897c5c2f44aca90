"""What a sandbox is and how it lives: values, and what it needs of its platform."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import field, frozen

from ppio_agent._util.clock import utc_now
from ppio_agent.exceptions import NotFoundError
from ppio_agent.sandbox.backends.base import Backend, LineAddress, SandboxSpec
from ppio_agent.sandbox.templates.records import Build

from .machine import EndReason, State
from .options import CreateOptions
from .timers import Timers

if TYPE_CHECKING:
    from .live import LiveSandbox

__all__ = ["Asked", "Identity", "Life", "Surroundings", "not_found"]


@frozen(kw_only=True)
class Asked:
    """By which request a sandbox was made, if that may come again.

    Attributes:
        key: Its idempotency key.
        digest: Of its body, in hex.
    """

    key: str
    digest: str


@frozen(kw_only=True)
class Identity:
    """What never changes about a sandbox.

    Attributes:
        id: Its id.
        tenant: Whose it is.
        alias: Name of its template.
        build: What it was made from.
        options: How its creator wanted it.
        root: Its folder.
        line: Where its supervisor is reached.
        orphan_grace: Seconds it outlives a platform that crashed.
        command_deadline: `enforce` kills a command at the time limit of its caller.
        access_token: What callers of envd must show; None is no check.
        traffic_token: What callers of its other ports must show; None is no check.
        python: Interpreter of its agent; None: that of the platform.
        asked: The request that made it; None if that had no idempotency key.
    """

    id: str
    tenant: str
    alias: str
    build: Build
    options: CreateOptions
    root: Path
    line: LineAddress
    orphan_grace: float = 0.0
    command_deadline: str = "off"
    access_token: str | None = field(default=None, repr=False)
    traffic_token: str | None = field(default=None, repr=False)
    python: str | None = None
    asked: Asked | None = None

    def spec(self) -> SandboxSpec:
        """Return what a backend needs to start it, or to take it over."""
        return SandboxSpec(
            sandbox_id=self.id,
            template_id=self.build.template_id,
            root=self.root,
            line=self.line,
            entrypoint=self.build.entrypoint,
            env=self.options.env,
            start_timeout=float(self.build.start_timeout),
            memory_mb=self.build.memory_mb,
            cpus=self.build.cpus,
            access_token=self.access_token,
            allow_internet=self.options.allow_internet,
            orphan_grace=self.orphan_grace,
            python=self.python,
            command_deadline=self.command_deadline,
        )


@frozen(kw_only=True)
class Life:
    """What changes about a sandbox; replaced as a whole, so readers need no lock.

    Attributes:
        state: Its state.
        started_at: When it was accepted.
        end_at: When its time is over.
        ends: The same as an instant of the monotonic clock.
        pauses: Whether the end of its time pauses it.
        reason: Why it was killed.
    """

    state: State
    started_at: datetime
    end_at: datetime
    ends: float
    pauses: bool
    reason: EndReason | None = None


@frozen(kw_only=True)
class Surroundings:
    """What a sandbox needs of its platform.

    Attributes:
        backend: Starts it.
        timers: Its clock.
        background: Runs a function on another thread.
        on_life: Called after each change of its life; what it keeps of that is what a
            next platform finds if this one crashes.
        on_end: Called once, when its last process is gone.
        paused_timeout: Seconds a paused sandbox is kept.
        monotonic: The clock of `timers`.
        utc: The present instant.
    """

    backend: Backend
    timers: Timers
    background: Callable[[Callable[[], object]], None]
    on_life: Callable[[LiveSandbox], None]
    on_end: Callable[[LiveSandbox], None]
    paused_timeout: float
    monotonic: Callable[[], float] = time.monotonic
    utc: Callable[[], datetime] = utc_now


def not_found(sandbox_id: str) -> NotFoundError:
    """Return the error for a sandbox that the caller cannot see."""
    return NotFoundError(
        f"sandbox {sandbox_id} was not found", code="sandbox_not_found"
    )
