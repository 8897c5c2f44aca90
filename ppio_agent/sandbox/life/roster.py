"""Which sandboxes there are, and whose they are: at most as many as may be."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from ppio_agent.sandbox.config import PlatformConfig

from .limits import admit, stopping
from .live import LiveSandbox

__all__ = ["Roster"]

_REMEMBERED = 1000


class Roster:
    """The live sandboxes of a platform. One is in it until its last process is gone.

    Args:
        config: Says how many there may be.
        monotonic: The clock that their time runs by.

    Thread safety: thread-safe.
    """

    def __init__(
        self, config: PlatformConfig, *, monotonic: Callable[[], float]
    ) -> None:
        self._config = config
        self._monotonic = monotonic
        # Guards everything below.
        self._lock = threading.Lock()
        self._live: dict[str, LiveSandbox] = {}
        self._owners: dict[str, str] = {}  # access token → sandbox id
        # Clients that name a sandbox by its token alone are told that it has ended.
        self._departed: deque[str] = deque()  # the newest tokens of those that left
        self._closed = False

    def admit(self, sandbox: LiveSandbox) -> None:
        """Give a new sandbox a place.

        Raises:
            SandboxLimitError: Its tenant has as many sandboxes as it may have.
            ServiceUnavailableError: The platform is full or stopping.
        """
        tenant = sandbox.identity.tenant
        with self._lock:
            if self._closed:
                raise stopping()
            others = self._live.values()
            own = [s for s in others if s.identity.tenant == tenant]
            now = self._monotonic()
            ends = [now if s.doomed else s.life.ends for s in own or others]
            admit(
                tenant=len(own),
                total=len(self._live),
                tenant_limit=self._config.max_sandboxes_per_tenant,
                total_limit=self._config.max_sandboxes,
                next_end=min(ends) - now if ends else None,
            )
            self._enter_locked(sandbox)

    def enter(self, sandbox: LiveSandbox) -> None:
        """Take in one that exists already, even if it is one too many."""
        with self._lock:
            self._enter_locked(sandbox)

    def _enter_locked(self, sandbox: LiveSandbox) -> None:
        self._live[sandbox.id] = sandbox
        token = sandbox.identity.access_token
        if token is not None:
            self._owners[token] = sandbox.id

    def leave(self, sandbox: LiveSandbox) -> None:
        """Free the place of a sandbox. Idempotent."""
        token = sandbox.identity.access_token
        with self._lock:
            if self._live.pop(sandbox.id, None) is None or token is None:
                return
            self._departed.append(token)
            if len(self._departed) > _REMEMBERED:
                del self._owners[self._departed.popleft()]

    def close(self) -> bool:
        """Admit no more; return whether that is new."""
        with self._lock:
            first, self._closed = not self._closed, True
        return first

    def find(self, sandbox_id: str) -> LiveSandbox | None:
        """Return the sandbox with this id unless it is being killed; no wait."""
        sandbox = self._live.get(sandbox_id)
        return None if sandbox is None or sandbox.doomed else sandbox

    def present(self, sandbox_id: str) -> LiveSandbox | None:
        """Return the sandbox with this id, be it killed or not; no wait."""
        return self._live.get(sandbox_id)

    def owner_of(self, access_token: str) -> str | None:
        """Return the id of the sandbox with this envd token, or None; no wait.

        Those of the newest 1000 that have ended are known, too.
        """
        return self._owners.get(access_token)

    def everyone(self) -> list[LiveSandbox]:
        """Return all, those that are being killed included."""
        with self._lock:
            return list(self._live.values())
