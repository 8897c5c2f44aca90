"""All sandboxes that one backend holds on to."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ppio_agent._util.threads import NoThreadError
from ppio_agent.exceptions import SandboxStartError

from .base import OnAgent, OnLost, SandboxSpec
from .control_group import ControlGroup, ControlGroups, find_group
from .handles import ProcessHandle
from .line import CALL_LIMIT, call
from .startup import read_tail
from .supervised import SupervisedSandbox
from .uplink import Uplink

__all__ = ["Blank", "Holds"]

_START_LIMIT = 10.0


class Blank(NamedTuple):
    """A supervisor that waits to be told what it is to be.

    Attributes:
        sock: The line to it.
        process: Its process.
        uplink: Its way to the network, if it has one that can be lost.
    """

    sock: socket.socket
    process: ProcessHandle
    uplink: Uplink | None = None


class Holds:
    """The sandboxes of one backend: begun, taken over, and ended with it.

    Args:
        groups: Makes each its control group; None: they do without.

    Thread safety: thread-safe.
    """

    def __init__(self, groups: ControlGroups | None = None) -> None:
        self._groups = groups
        # Guards _held and _closed.
        self._lock = threading.Lock()
        self._held: set[SupervisedSandbox] = set()
        self._closed = False
        self._numbers = itertools.count(1)

    def start(
        self,
        spec: SandboxSpec,
        make: Callable[[], Blank],
        *,
        boot: Mapping[str, Any],
        on_agent: OnAgent,
        on_lost: OnLost,
        complaints: Path,
    ) -> SupervisedSandbox:
        """Start a sandbox; see `Backend.start`.

        Args:
            spec: What it is.
            make: Starts its supervisor.
            boot: What that is to be told.
            on_agent: Told each change of the agent.
            on_lost: Told once if it ends unasked.
            complaints: Where it says why it does not come up.

        Raises:
            SandboxStartError: It does not come up, the system has no thread or no
                control group for it, or the backend is closed. Nothing is left.
        """
        group = self._make_group(spec)
        try:
            sock, process, uplink = make()
        except BaseException as exc:
            if group is not None:
                group.end()
            if not isinstance(exc, OSError):
                raise
            raise SandboxStartError(
                f"sandbox {spec.sandbox_id} could not be started: {exc}"
            ) from exc
        sandbox = SupervisedSandbox(
            spec,
            process,
            sock,
            on_agent=on_agent,
            on_lost=on_lost,
            on_gone=self._forget,
            uplink=uplink,
            group=group,
        )
        if group is not None:
            self._enter(sandbox, spec, group)
            boot = {**boot, "pinned": not group.limits_cpus}
        if not self._begin(sandbox, spec, boot, _START_LIMIT):
            raise SandboxStartError(
                f"the supervisor of sandbox {spec.sandbox_id} did not come up:"
                f" {read_tail(complaints)}"
            )
        return sandbox

    def adopt(
        self, spec: SandboxSpec, *, on_agent: OnAgent, on_lost: OnLost
    ) -> SupervisedSandbox:
        """Take over a sandbox of another platform; see `Backend.adopt`."""
        try:
            sock = call(spec.line, adopt=True)
        except OSError as exc:
            raise SandboxStartError(
                f"nobody answers for sandbox {spec.sandbox_id}: {exc}"
            ) from exc
        sandbox = SupervisedSandbox(
            spec,
            None,
            sock,
            on_agent=on_agent,
            on_lost=on_lost,
            on_gone=self._forget,
        )
        if not self._begin(sandbox, spec, None, CALL_LIMIT):
            raise SandboxStartError(
                f"sandbox {spec.sandbox_id} does not let itself be taken over"
            )
        sandbox.group = find_group(spec.sandbox_id, sandbox.pid)
        return sandbox

    def _make_group(self, spec: SandboxSpec) -> ControlGroup | None:
        try:
            return None if self._groups is None else self._groups.make(spec)
        except OSError as exc:
            raise SandboxStartError(
                f"sandbox {spec.sandbox_id} has no control group: {exc}"
            ) from exc

    def _enter(
        self, sandbox: SupervisedSandbox, spec: SandboxSpec, group: ControlGroup
    ) -> None:
        """Put what is a supervisor alone by now, and all it will start, into a group."""
        try:
            # Of one that has ended its complaints tell more.
            with suppress(ProcessLookupError):
                group.add(sandbox.pid)
        except OSError as exc:
            self._begin(sandbox, spec, None, 0.0)  # which ends what is told nothing
            raise SandboxStartError(
                f"sandbox {spec.sandbox_id} is not let into its control group: {exc}"
            ) from exc

    def _begin(
        self,
        sandbox: SupervisedSandbox,
        spec: SandboxSpec,
        boot: Mapping[str, Any] | None,
        timeout: float,
    ) -> bool:
        """Hold on to a sandbox and return whether it comes up; else it is ended."""
        with self._lock:
            closed = self._closed
            if not closed:
                self._held.add(sandbox)
        name = f"ppio-sandbox-{next(self._numbers)}"
        try:
            up = sandbox.start(
                None if closed else boot,
                timeout=0.0 if closed else timeout,
                thread_name=name,
            )
        except NoThreadError as exc:
            raise SandboxStartError(
                f"sandbox {spec.sandbox_id} could not be started: {exc}"
            ) from exc
        except BaseException:  # an interrupt leaves no sandbox that nobody holds
            sandbox.begin_kill(0.0)
            raise
        if closed or not up:
            sandbox.kill(0.0)
        if closed:
            raise SandboxStartError("the backend is closed")
        return up

    def close(self) -> None:
        """Kill, without grace, whatever still runs. Idempotent."""
        with self._lock:
            self._closed = True
            held = list(self._held)
        for sandbox in held:
            sandbox.begin_kill(0.0)
        for sandbox in held:
            sandbox.kill(0.0)

    def _forget(self, sandbox: SupervisedSandbox) -> None:
        with self._lock:
            self._held.discard(sandbox)
