"""All sandboxes that one backend holds on to."""

from __future__ import annotations

import itertools
import socket
import threading
from collections.abc import Mapping
from typing import Any

from ppio_agent._util.threads import NoThreadError
from ppio_agent.exceptions import SandboxStartError

from .base import OnAgent, OnLost, SandboxSpec
from .handles import ProcessHandle
from .line import CALL_LIMIT, call
from .supervised import SupervisedSandbox
from .uplink import Uplink

__all__ = ["Holds"]


class Holds:
    """The sandboxes of one backend: begun, taken over, and ended with it.

    Thread safety: thread-safe.
    """

    def __init__(self) -> None:
        # Guards _held and _closed.
        self._lock = threading.Lock()
        self._held: set[SupervisedSandbox] = set()
        self._closed = False
        self._numbers = itertools.count(1)

    def begin(
        self,
        spec: SandboxSpec,
        sock: socket.socket,
        process: ProcessHandle | None,
        *,
        boot: Mapping[str, Any] | None,
        on_agent: OnAgent,
        on_lost: OnLost,
        timeout: float,
        uplink: Uplink | None = None,
    ) -> SupervisedSandbox | None:
        """Return the sandbox behind a line once it is up; None if it does not come up.

        Args:
            spec: What it is.
            sock: The line; owned from now on.
            process: The supervisor, as of `SupervisedSandbox`.
            boot: What it is to be told; None if it was told before.
            on_agent: Told each change of the agent.
            on_lost: Told once if it ends unasked.
            timeout: Most seconds to wait.
            uplink: As of `SupervisedSandbox`.

        Raises:
            SandboxStartError: The backend is closed, or the system has no thread for
                it. Nothing is left, as when it does not come up.
        """
        sandbox = SupervisedSandbox(
            spec,
            process,
            sock,
            on_agent=on_agent,
            on_lost=on_lost,
            on_gone=self._forget,
            uplink=uplink,
        )
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
        return sandbox if up else None

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
        found = self.begin(
            spec,
            sock,
            None,
            boot=None,
            on_agent=on_agent,
            on_lost=on_lost,
            timeout=CALL_LIMIT,
        )
        if found is None:
            raise SandboxStartError(
                f"sandbox {spec.sandbox_id} does not let itself be taken over"
            )
        return found

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
