"""A client's hold on one sandbox and the agent in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import (
    PPIOAgentError,
    SessionClosedError,
    SessionNotFoundError,
    ValidationError,
)
from ppio_agent.wire.headers import valid_id
from ppio_agent.wire.models import InvocationResponse

from .call import Call, Line
from .config import UNSET, Unset
from .hold import SandboxHold
from .invocation import AgentRequest, encode_request
from .limits import seconds
from .state import SessionState, paused_error
from .stream import StreamHost, StreamingResponse

__all__ = ["SandboxSession"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class SandboxSession(SandboxHold):
    """One live sandbox and the agent in it, for as many invocations as wanted.

    Made by `AgentRuntimeClient.create_session`. Use it as a context manager, or close
    it: an open session holds a sandbox.

    Attributes:
        auto_resume: Whether an invocation resumes a paused session first.

    A pickled session is its `SessionRef`: a name of the sandbox, no hold on it.

    Thread safety: thread-safe; invocations do not wait for one another.

    Blocking: every method waits for the platform or the agent, within
    `ClientConfig.request_timeout` if it takes no timeout of its own.
    """

    def invoke(
        self,
        request: AgentRequest,
        *,
        timeout: float | Unset | None = UNSET,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> InvocationResponse:
        """Run the agent once and return its answer.

        Args:
            request: A prompt, an object that is sent as it is, or an
                `InvocationRequest`.
            timeout: Total seconds, retries included; None means no limit. Default:
                `ClientConfig.timeout`.
            idempotency_key: Under which the agent runs this once; made up if None.
            headers: Further headers for the agent.

        Returns:
            The envelope; what a streaming agent gives is collected.

        Raises:
            ValidationError: The request or `timeout` cannot be sent; nothing was.
            InvocationError: The agent failed; code ``session_paused`` if the session
                is paused and nothing was sent.
            SessionNotFoundError: The sandbox is gone; the agent was not reached, or may
                have been if the code is ``session_lost``.
            RequestTimeoutError: The time ran out; `idempotency_key` joins the run.
        """
        return self.run(self._make_call(request, timeout, idempotency_key, headers))

    def run(self, call: Call) -> InvocationResponse:
        """Do as `invoke`, with a call that was made before."""

        def run() -> InvocationResponse:
            with self._counted(call):
                return self._port.invoke(call)

        return self._reaching_agent(run, call.deadline)

    def invoke_stream(
        self,
        request: AgentRequest,
        *,
        deadline: float | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> StreamingResponse:
        """Run the agent once and return its answer piece by piece.

        Args:
            request: As for `invoke`.
            deadline: Total seconds until the end of the stream; None means no limit.
                A silence of `ClientConfig.idle_timeout` ends it in any case.
            idempotency_key: As for `invoke`.
            headers: As for `invoke`.

        Returns:
            The stream, once the agent has begun to answer; read it to the end or
            close it.

        Raises:
            As `invoke`.
        """
        limit = seconds("deadline", deadline)
        return self.open_stream(
            self._make_call(request, limit, idempotency_key, headers)
        )

    def open_stream(self, call: Call, *, owned: bool = False) -> StreamingResponse:
        """Do as `invoke_stream`; with `owned` the session ends with the stream."""
        host = self._host(call, owned=owned)
        return self._hosting(call, lambda: self._port.open_stream(call, host))

    def open_either(self, call: Call) -> InvocationResponse | StreamingResponse:
        """Do as `invoke`, but give the answer of a streaming agent as a stream."""
        host = self._host(call)
        answer = self._hosting(call, lambda: self._port.open(call, host))
        if isinstance(answer, InvocationResponse):
            host.end()
        return answer

    def resume_stream(
        self,
        invocation_id: str,
        last_event_id: str | None = None,
        *,
        deadline: float | None = None,
    ) -> StreamingResponse:
        """Return the rest of a stream that was begun elsewhere, or before.

        Args:
            invocation_id: The run, as `StreamInterruptedError` and the stream name it.
            last_event_id: Id of the last chunk that is there; None begins with the
                first.
            deadline: Total seconds until the end of the stream; None means no limit.

        Raises:
            ValidationError: An id cannot be sent, or the run has no such event yet.
            InvocationNotFoundError: The agent does not know the run, or no longer.
            ReplayGoneError: It does not keep the events after that one any more.
            NotFoundError: It keeps no runs.
        """
        if not valid_id(invocation_id):
            raise ValidationError(
                "an invocation id has to be 1 to 128 of A-Z a-z 0-9 . _ : -"
            )
        limit = Deadline.after(seconds("deadline", deadline))
        line = Line(invocation_id=invocation_id, deadline=limit)
        host = self._host(line)
        return self._hosting(
            line, lambda: self._port.resume_stream(line, host, last_event_id)
        )

    def _host(self, line: Line, *, owned: bool = False) -> StreamHost:
        """Return what is done here about a stream; `owned` is the session by it."""
        calls = self._pulse.calls

        def ended() -> None:
            calls.discard(line)
            if owned:
                self.dispose()

        def left() -> None:
            try:
                if owned:
                    self.dispose()  # which has the run cancelled: it is among the calls
            finally:
                calls.discard(line)

        def abandoned() -> None:
            calls.discard(line)
            if owned:
                self._caretaker.abandon(self)

        return StreamHost(
            begin=lambda: self._begin(line), end=ended, leave=left, abandon=abandoned
        )

    def _hosting(self, line: Line, start: Callable[[], _T]) -> _T:
        """Return the stream that `start` gives, counted in until its end."""

        def run() -> _T:
            self._begin(line)
            try:
                return start()
            except BaseException:
                self._pulse.calls.discard(line)
                raise

        return self._reaching_agent(run, line.deadline)

    def _make_call(
        self,
        request: AgentRequest,
        timeout: float | Unset | None,
        idempotency_key: str | None,
        headers: Mapping[str, str] | None,
    ) -> Call:
        limit = self._timeout if isinstance(timeout, Unset) else timeout
        return Call.make(
            encode_request(request),
            deadline=Deadline.after(seconds("timeout", limit)),
            idempotency_key=idempotency_key,
            headers=headers,
        )

    @contextmanager
    def _counted(self, call: Line) -> Iterator[None]:
        self._begin(call)
        try:
            yield
        finally:
            self._pulse.calls.discard(call)

    def _begin(self, call: Line) -> None:
        """Count a call in, and see to it that the sandbox outlives it."""
        if self.state is SessionState.PAUSED and self.auto_resume:
            self._resume(self._ttl, call.deadline)
        self._pulse.admit(call)
        try:
            if time.monotonic() >= self.extend_at:
                self._extend_before_call(call.deadline)
            self._caretaker.watch(self)
        except BaseException:
            self._pulse.calls.discard(call)
            raise

    def _extend_before_call(self, deadline: Deadline) -> None:
        try:
            self.extend(deadline)
        except SessionNotFoundError:
            raise
        except PPIOAgentError as error:
            # The call may well succeed; if it does not, its own error says why.
            _log.warning("extending sandbox %s failed: %s", self._sandbox_id, error)

    def _reaching_agent(self, run: Callable[[], _T], deadline: Deadline) -> _T:
        """Run a call; if the edge does not know the sandbox, find out why.

        The edge answers alike for a sandbox that is gone and for one that the
        platform froze. In both cases nothing has reached the agent.
        """
        try:
            return run()
        except SessionClosedError:
            raise
        except SessionNotFoundError as error:
            if self._look_at_platform(deadline) is not SessionState.PAUSED:
                raise
            if not self.auto_resume:
                raise paused_error(self._sandbox_id) from error
            return run()
