"""What one client answers for: its sessions, its launches, and what it could not end."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from ppio_agent._util.clock import Deadline
from ppio_agent._util.fork import renew_in_child
from ppio_agent._util.threads import NoThreadError, WorkerPool
from ppio_agent.exceptions import (
    PPIOAgentError,
    RequestTimeoutError,
)
from ppio_agent.hooks import SessionEvent
from ppio_agent.transport import CallScope
from ppio_agent.wire.headers import sandbox_key
from ppio_agent.wire.models import AgentTemplate

from .caretaker import Caretaker
from .control import ControlPlane
from .conversation import (
    check_session_id,
    conversation_metadata,
    in_order,
    settle,
)
from .flight import SingleFlight
from .launch import Launched, Launcher, SandboxOptions
from .limits import check_name, time_left
from .reference import SessionRef
from .session import SandboxSession
from .state import SessionState, between_error

__all__ = ["SessionBook", "run_all"]

_THREADS = 16
_USABLE = frozenset({SessionState.ACTIVE, SessionState.PAUSED})

# Template id and session id: a session id belongs to its template.
_Conversation = tuple[str, str]


class SessionBook:
    """Opens the sessions of one client and keeps each until its sandbox is gone.

    Args:
        on_change: Is told of each new state of a session, if anybody cares.

    Thread safety: thread-safe. A forked child begins without any.
    """

    def __init__(
        self, on_change: Callable[[SessionEvent], object] | None = None
    ) -> None:
        self._on_change = on_change
        self._caretaker = Caretaker()
        self._closed_by: PPIOAgentError | None = None
        self._begin_empty()
        renew_in_child(self, SessionBook._begin_empty)

    def _begin_empty(self) -> None:
        self._settling: SingleFlight[_Conversation, SandboxSession] = SingleFlight()
        # Guards all below and _closed_by; told when a launch has ended.
        self._changed = threading.Condition()
        self._sessions: dict[SandboxSession, None] = {}  # in the order of their coming
        self._conversations: dict[_Conversation, SandboxSession] = {}
        self._launching: dict[CallScope, int] = {}  # with the thread of each
        self._when_quiet: Callable[[], object] | None = None
        self._leftovers: set[str] = set()

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
        session = self._create(launcher, template, options, deadline)
        if options.session_id is not None:
            self._bind((template.template_id, options.session_id), session)
        return session

    def _create(
        self,
        launcher: Launcher,
        template: AgentTemplate,
        options: SandboxOptions,
        deadline: Deadline,
    ) -> SandboxSession:
        def adopt(launched: Launched) -> SandboxSession:
            session = self._session(launcher, launched)
            self._add(session)
            return session

        with self._launch():
            return launcher.launch(template, options, deadline=deadline, adopt=adopt)

    def attach(
        self,
        launcher: Launcher,
        target: SessionRef | str,
        *,
        session_id: str | None,
        own: bool,
        deadline: Deadline,
    ) -> SandboxSession:
        """Return a session on a sandbox that exists.

        Args:
            launcher: Knows the platform.
            target: The sandbox, by its reference or its id.
            session_id: The conversation, if it is to be another one.
            own: Whether `close` ends the sandbox.
            deadline: Bounds what the platform is asked.

        Raises:
            ValidationError: `target` or `session_id` cannot be used.
            SessionNotFoundError: There is no such sandbox.
        """
        if not isinstance(target, SessionRef):
            check_name(
                "a session is attached by its SessionRef or its sandbox's id", target
            )
        if session_id is not None:
            check_session_id(session_id)
        with self._launch():
            launched, state = launcher.attach(
                target,
                session_id=session_id,
                time_to_live=None,
                deadline=deadline,
            )
            session = self._session(launcher, launched, state, owned=own)
            self._add(session)
            return session

    def conversation(
        self,
        launcher: Launcher,
        template: AgentTemplate,
        options: SandboxOptions,
        *,
        deadline: Deadline,
    ) -> SandboxSession:
        """Return the session of a conversation; the first of many callers opens it.

        One that another process has begun is taken, see `conversation`; one that is of
        no use any more is replaced.

        Raises:
            ConflictError: Its sandbox neither runs nor is paused.
        """
        key = (template.template_id, str(options.session_id))

        def begin() -> SandboxSession:
            found = self._kept(key, deadline)
            if found is None:
                found = self._settle(launcher, template, options, deadline)
                found.auto_resume = True
                self._bind(key, found)
            return found

        with self._changed:
            found = self._conversations.get(key)
        if found is not None and found.state in _USABLE:
            return found
        return self._settling.run(key, begin, deadline)

    def _settle(
        self,
        launcher: Launcher,
        template: AgentTemplate,
        options: SandboxOptions,
        deadline: Deadline,
    ) -> SandboxSession:
        control = launcher.control
        wanted = conversation_metadata(template.template_id, options.session_id)

        def find() -> list[str]:
            name = control.endpoint.sandbox_ref
            found = in_order(control.find_sandboxes(wanted, deadline))
            return [name(s.sandbox_id, s.client_id) for s in found]

        def attach(sandbox_id: str) -> SandboxSession:
            launched, state = launcher.attach(
                sandbox_id,
                session_id=options.session_id,
                time_to_live=options.time_to_live,
                deadline=deadline,
            )
            if state not in _USABLE:
                raise between_error(sandbox_id)
            session = self._session(launcher, launched, state, owned=False)
            if state is SessionState.ACTIVE:
                session.wait_ready(deadline)
            return session

        with self._launch():
            session = settle(
                find=find,
                create=lambda: self._create(launcher, template, options, deadline),
                attach=attach,
            )
            if not session.owned:
                self._add(session)
            return session

    def _kept(self, key: _Conversation, deadline: Deadline) -> SandboxSession | None:
        """Return the session of a conversation; None if it has to be replaced.

        What was not well when it was last seen is asked for first: a sandbox is only
        ended if it is ours, its agent does not answer and no call runs in it.
        """
        with self._changed:
            found = self._conversations.get(key)
        if found is None or found.state in _USABLE:
            return found
        if found.state is not SessionState.CLOSED:
            found.ask(deadline)
            time_left(deadline)  # too little of it is no fault of the agent's
        if found.state in _USABLE:
            return found
        if found.gone:
            return None
        if found.state is SessionState.INACTIVE:
            raise between_error(found.sandbox_id)
        if found.state is SessionState.ERROR and (found.busy or not found.owned):
            return found
        found.dispose()
        return None

    def _session(
        self,
        launcher: Launcher,
        launched: Launched,
        state: SessionState = SessionState.ACTIVE,
        *,
        owned: bool = True,
    ) -> SandboxSession:
        return SandboxSession(
            launched,
            control=launcher.control,
            caretaker=self._caretaker,
            state=state,
            owned=owned,
            on_closed=self._remove,
            on_change=self._on_change,
        )

    @contextmanager
    def _launch(self) -> Iterator[None]:
        """Let `close` end what is launched in this block, and wait for that."""
        scope = CallScope()
        with self._changed:
            if self._closed_by is not None:
                raise copy.copy(self._closed_by)
            self._launching[scope] = threading.get_ident()
        try:
            with scope.running():
                yield
        finally:
            with self._changed:
                self._launching.pop(scope, None)  # none in a child that forked in it
                self._changed.notify_all()
            self._settle_down()

    def when_quiet(self, then: Callable[[], object]) -> None:
        """Do something, once, as soon as no launch is under way."""
        self._when_quiet = then
        self._settle_down()

    def _settle_down(self) -> None:
        with self._changed:
            if self._launching or self._when_quiet is None:
                return
            then, self._when_quiet = self._when_quiet, None
        then()

    def _add(self, session: SandboxSession) -> None:
        with self._changed:
            self._sessions[session] = None
        if self._on_change is not None:
            self._on_change(session.began())

    def _bind(self, key: _Conversation, session: SandboxSession) -> None:
        """Let later calls of a conversation find a session, the newest of several."""
        with self._changed:
            if not session.gone:
                self._conversations[key] = session

    def _remove(self, session: SandboxSession) -> None:
        key = (session.template_id, session.session_id)
        with self._changed:
            self._sessions.pop(session, None)
            if self._conversations.get(key) is session:
                del self._conversations[key]

    def named(self, name: str) -> tuple[SandboxSession, ...]:
        """Return those of a session id, or of a sandbox id in either style.

        Raises:
            ValidationError: It is no text.
        """
        check_name("a session is closed by its session id or its sandbox's id", name)
        sandbox = sandbox_key(name)
        return tuple(
            session
            for session in self.sessions()
            if name == session.session_id or sandbox == sandbox_key(session.sandbox_id)
        )

    def sessions(self) -> tuple[SandboxSession, ...]:
        """Return the sessions whose sandboxes are not known to be gone."""
        with self._changed:
            return tuple(self._sessions)

    def add_leftover(self, sandbox_id: str) -> None:
        """Remember a sandbox that could not be killed."""
        with self._changed:
            self._leftovers.add(sandbox_id)

    def leave_conversations(self) -> None:
        """Let the conversations outlive this client: others may find them by id."""
        for session in self.sessions():
            if session.session_id != session.sandbox_id:
                session.disown()

    def close_all(self, deadline: Deadline) -> dict[str, Exception]:
        """End all sessions it owns, 16 at a time; return the failures by sandbox id."""
        owned = [s for s in self.sessions() if s.owned]
        return run_all({s.sandbox_id: s.close for s in owned}, deadline)

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
        # A launch of this very thread was interrupted, by a signal, for this: it goes
        # on, and ends, once the handler has returned.
        here = {threading.get_ident()}
        with self._changed:
            self._changed.wait_for(
                lambda: here.issuperset(self._launching.values()), deadline.left()
            )
        failures = self.close_all(deadline)
        for session in self.sessions():
            if not session.owned:
                session.release(error)
        with self._changed:
            leftovers = tuple(self._leftovers)
        if control is not None:
            jobs = {i: partial(control.kill_sandbox, i, deadline) for i in leftovers}
            failures.update(run_all(jobs, deadline))
        self._caretaker.close(deadline.left())
        return failures


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
    try:
        for name, job in jobs.items():
            run = running(name, job)
            try:
                pool.submit(run)
            except NoThreadError:  # at exit Python 3.12.1 starts none
                run()
        for _ in jobs:
            if not ended.acquire(timeout=deadline.left()):
                break
    finally:
        pool.close(0.0)
    return dict(failures)
