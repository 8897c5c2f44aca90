"""What one client answers for: its sessions, its launches, and what it could not end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from ppio_agent._util.clock import Deadline
from ppio_agent._util.threads import WorkerPool
from ppio_agent.exceptions import PPIOAgentError, RequestTimeoutError
from ppio_agent.transport import CallScope
from ppio_agent.wire.models import AgentTemplate

from .caretaker import Caretaker
from .config import ClientConfig
from .control import ControlPlane
from .flight import SingleFlight
from .launch import Launched, Launcher, SandboxOptions
from .session import SandboxSession
from .state import SessionPlan, SessionState

__all__ = ["SessionBook", "run_all"]

_THREADS = 16
_USABLE = frozenset({SessionState.ACTIVE, SessionState.PAUSED})

# Template id and session id: a session id belongs to its template.
_Conversation = tuple[str, str]


class SessionBook:
    """Opens the sessions of one client and keeps each until its sandbox is gone.

    Args:
        config: The client's settings.

    Thread safety: thread-safe.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._caretaker = Caretaker()
        self._creating: SingleFlight[_Conversation, SandboxSession] = SingleFlight()
        # Guards all below; told when a launch has ended.
        self._changed = threading.Condition()
        self._sessions: dict[str, SandboxSession] = {}
        self._conversations: dict[_Conversation, SandboxSession] = {}
        self._launching: set[CallScope] = set()
        self._leftovers: set[str] = set()
        self._closed_by: PPIOAgentError | None = None

    def open(
        self,
        launcher: Launcher,
        template: AgentTemplate,
        options: SandboxOptions,
        *,
        deadline: Deadline,
    ) -> SandboxSession:
        """Create a sandbox and return the session on it once its agent answers.

        Args:
            launcher: Creates it.
            template: What it is made from.
            options: What it is asked for with.
            deadline: Bounds everything.
        """

        def adopt(launched: Launched) -> SandboxSession:
            plan = SessionPlan(
                template_id=launched.template_id,
                time_to_live=options.time_to_live,
                start_timeout=launched.start_timeout,
                timeout=self._config.timeout,
            )
            session = SandboxSession(
                plan,
                sandbox_id=launched.sandbox_id,
                control=launcher.control,
                port=launched.port,
                caretaker=self._caretaker,
                on_closed=self._remove,
                expires=launched.expires,
            )
            self._add(session, options.session_id)
            return session

        with self._launch():
            return launcher.launch(template, options, deadline=deadline, adopt=adopt)

    def conversation(
        self,
        launcher: Launcher,
        template: AgentTemplate,
        options: SandboxOptions,
        *,
        deadline: Deadline,
    ) -> SandboxSession:
        """Return the session of a conversation; the first of many callers opens it.

        One that is of no use any more is ended and replaced.
        """
        key = (template.template_id, str(options.session_id))

        def create() -> SandboxSession:
            found = self._find(key)
            if found is None:
                found = self.open(launcher, template, options, deadline=deadline)
                found.auto_resume = True
            return found

        found = self._find(key)
        return found or self._creating.run(key, create, deadline)

    def _find(self, key: _Conversation) -> SandboxSession | None:
        with self._changed:
            found = self._conversations.get(key)
            if found is None or found.state in _USABLE:
                return found
            del self._conversations[key]
        found.dispose()
        return None

    @contextmanager
    def _launch(self) -> Iterator[None]:
        """Let `close` end what is launched in this block, and wait for that."""
        scope = CallScope()
        with self._changed:
            if self._closed_by is not None:
                raise self._closed_by
            self._launching.add(scope)
        try:
            with scope.running():
                yield
        finally:
            with self._changed:
                self._launching.discard(scope)
                self._changed.notify_all()

    def _add(self, session: SandboxSession, session_id: str | None) -> None:
        with self._changed:
            self._sessions[session.sandbox_id] = session
            if session_id is not None:
                key = (session.template_id, session_id)
                self._conversations.setdefault(key, session)

    def _remove(self, session: SandboxSession) -> None:
        key = (session.template_id, session.session_id)
        with self._changed:
            self._sessions.pop(session.sandbox_id, None)
            if self._conversations.get(key) is session:
                del self._conversations[key]

    def sessions(self) -> tuple[SandboxSession, ...]:
        """Return the sessions whose sandboxes are not known to be gone."""
        with self._changed:
            return tuple(self._sessions.values())

    def add_leftover(self, sandbox_id: str) -> None:
        """Remember a sandbox that could not be killed."""
        with self._changed:
            self._leftovers.add(sandbox_id)

    def close_all(self, deadline: Deadline) -> dict[str, Exception]:
        """End all sessions, 16 at a time; return the failures by sandbox id."""
        return run_all({s.sandbox_id: s.close for s in self.sessions()}, deadline)

    def close(
        self, error: PPIOAgentError, control: ControlPlane | None, deadline: Deadline
    ) -> dict[str, Exception]:
        """End everything and open nothing any more.

        Args:
            error: What launches end with, now and later.
            control: Kills what could not be killed before; None if nothing was made.
            deadline: Bounds the waiting.

        Returns:
            The failures by sandbox id.
        """
        with self._changed:
            self._closed_by = error
            launches = tuple(self._launching)
        for launch in launches:
            launch.abort(error)
        with self._changed:
            self._changed.wait_for(lambda: not self._launching, deadline.left())
        failures = self.close_all(deadline)
        with self._changed:
            leftovers = tuple(self._leftovers)
            self._leftovers.clear()
        if control is not None:
            jobs = {i: _killing(control, i, deadline) for i in leftovers}
            failures.update(run_all(jobs, deadline))
        self._caretaker.close(deadline.left())
        return failures


def _killing(
    control: ControlPlane, sandbox_id: str, deadline: Deadline
) -> Callable[[], None]:
    return lambda: control.kill_sandbox(sandbox_id, deadline)


def run_all(
    jobs: Mapping[str, Callable[[], object]], deadline: Deadline
) -> dict[str, Exception]:
    """Run all jobs, 16 at a time, and wait for them; one that fails stops none.

    Returns:
        The failures by the jobs' names; a job that is not over by the deadline is one.
    """
    if not jobs:
        return {}
    late = RequestTimeoutError("it was not over in time")
    failures: dict[str, Exception] = dict.fromkeys(jobs, late)
    ended = threading.Semaphore(0)

    def running(name: str, job: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            try:
                job()
            except Exception as error:  # noqa: BLE001 - the caller gets it, by its name
                failures[name] = error
            else:
                del failures[name]
            finally:
                ended.release()

        return run

    pool = WorkerPool("ppio-client-close", max_threads=_THREADS, max_waiting=len(jobs))
    for name, job in jobs.items():
        pool.submit(running(name, job))
    for _ in jobs:
        if not ended.acquire(timeout=deadline.left()):
            break
    pool.close(0.0)
    return dict(failures)
