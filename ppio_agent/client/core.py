"""What a client and its variants share: one platform, its sessions, its templates."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Iterable

from ppio_agent._util.clock import Deadline
from ppio_agent._util.fork import renew_in_child
from ppio_agent.exceptions import ClientClosedError
from ppio_agent.hooks import Hooks

from .auth import AuthManager
from .config import ClientConfig
from .connection import Backend, connect, named_platform
from .control import ControlPlane
from .flight import SingleFlight
from .futures import Submissions
from .sessions import SessionBook
from .template import TemplateManager

__all__ = ["ClientCore"]

_log = logging.getLogger(__name__)

_CLOSE_LIMIT = 30.0
_EXIT_LIMIT = 10.0
# Of it, for calls on the client's threads to clean up; the rest is done for them.
_SUBMISSIONS_LIMIT = 10.0


class ClientCore:
    """Connects when it is first used, starts afresh in a forked child, closes once.

    Args:
        config: The client's settings.
        api_key: As given to the client.
        api_secret: As given to the client.
        plugins: As given to the client.

    Raises:
        AuthenticationError: There is an address but no key, or it cannot be used.
        ConfigurationError: A plug-in does not fit.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        config: ClientConfig,
        api_key: str | None,
        api_secret: str | None,
        plugins: Iterable[object],
    ) -> None:
        self._given = (api_key, api_secret)
        self._plugins = tuple(plugins)
        self._config = config
        self._hooks = Hooks.load(self._plugins)
        self._named = named_platform(config, self._hooks, api_key, api_secret)
        self._closed = self._closing = False
        self._start_afresh()
        renew_in_child(self, ClientCore._start_afresh)

    def _start_afresh(self) -> None:
        """Begin without sessions and connections: at first, and in a forked child."""
        # Guards _closed, _closing and _backend. Re-entrant, since a signal handler may
        # close the client on top of whatever its thread was doing.
        self._lock = threading.RLock()
        self._backend: Backend | None = None
        # A plug-in or the start of the embedded platform may take its time.
        self._connecting: SingleFlight[None, Backend] = SingleFlight(
            thread="ppio-client-connect"
        )
        self._book = SessionBook(self._hooks.for_client().session_changed)
        self._submissions = Submissions()
        self._templates = TemplateManager(
            lambda: self.backend().control,
            enable_cache=self._config.enable_cache,
            cache_ttl=self._config.cache_ttl,
        )

    @property
    def given(self) -> tuple[str | None, str | None, tuple[object, ...]]:
        """The key and the secret as given, or exchanged since, and the plug-ins."""
        keys = self._named[1] if self._named else None
        given = keys.given if isinstance(keys, AuthManager) else self._given
        return (*given, self._plugins)

    @property
    def book(self) -> SessionBook:
        """The sessions of this process."""
        return self._book

    @property
    def templates(self) -> TemplateManager:
        """The templates of the platform."""
        return self._templates

    @property
    def submissions(self) -> Submissions:
        """The calls that run on threads of this process.

        Raises:
            ClientClosedError: The client was closed.
        """
        self._check_open()
        return self._submissions

    @property
    def where(self) -> str:
        """What messages call the platform."""
        return self._named[0].url if self._named else "the local platform"

    def backend(self, deadline: Deadline | None = None) -> Backend:
        """Return what is needed to talk to the platform; connects at first.

        Args:
            deadline: Bounds the waiting for that, which goes on for later calls.

        Raises:
            ClientClosedError: The client was closed.
            AuthenticationError: None was named and there is no embedded one.
            RequestTimeoutError: The deadline passed.
        """
        self._check_open()
        backend = self._backend
        if backend is None:
            deadline = deadline or Deadline.after(None)
            backend = self._connecting.run(None, self._connect, deadline)
        return backend

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> ClientClosedError:
        return ClientClosedError("the client was closed; make a new one")

    def _connect(self) -> Backend:
        if self._backend is not None:
            return self._backend
        backend = connect(
            self._config,
            self._hooks,
            named=self._named,
            api_secret=self._given[1],
            on_leftover=self._book.add_leftover,
        )
        with self._lock:
            if not self._closed:
                self._backend = backend
                _open.add(self)
                # Once more, to be asked before what was registered until now: before
                # the embedded platform ends.
                atexit.unregister(_close_at_exit)
                atexit.register(_close_at_exit)
                return backend
        backend.control.transport.close()
        raise self._closed_error()

    def close(self, limit: float = _CLOSE_LIMIT) -> None:
        """End everything, once; see `AgentRuntimeClient.close`.

        After an interruption it may be called again, and goes on.

        Args:
            limit: Seconds it may take.
        """
        with self._lock:
            if self._closing:
                return
            self._closed = self._closing = True
            control = self._backend.control if self._backend else None
        try:
            self._end(control, Deadline.after(limit))
        except BaseException:
            self._closing = False
            raise

    def _end(self, control: ControlPlane | None, deadline: Deadline) -> None:
        error = ClientClosedError("the client was closed while this went on")
        self._submissions.close(error, deadline.bound(_SUBMISSIONS_LIMIT))
        failures = self._book.close(error, control, deadline)
        for sandbox_id, failure in failures.items():
            _log.error(
                "sandbox %s could not be ended, its time to live will: %s",
                sandbox_id,
                failure,
            )
        if control is not None:
            # Not before a launch that this interrupted has ended its sandbox.
            self._book.when_quiet(control.transport.close)


_open: weakref.WeakSet[ClientCore] = weakref.WeakSet()


def _close_at_exit() -> None:
    """Leave no sandbox behind that nobody will find again.

    A conversation is found by its id: a worker that a server replaces must not end
    those of its visitors.
    """
    for core in tuple(_open):
        core.book.leave_conversations()
        core.close(_EXIT_LIMIT)
