"""The transport: sends requests, gives whole answers or streams, closes everything."""

from __future__ import annotations

import copy
import os
import random as _random
import threading
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TYPE_CHECKING

from attrs import evolve

from ppio_agent._util.closing import Closing
from ppio_agent._util.redact import Redactor
from ppio_agent.exceptions import ClientClosedError, PPIOAgentError
from ppio_agent.hooks import ClientHooks
from ppio_agent.wire.problem import Problem

from .attempts import Attempts, Body, Setup
from .calls import CallHandle
from .errors import answer_error
from .messages import Request, Response, TransportConfig
from .middleware import Chain
from .retry import RetryPolicy
from .route import parse_proxy
from .sharing import PoolShare, shared_pools
from .streams import RawStream

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Transport"]


class Transport(Closing):
    """Sends requests over kept connections.

    Args:
        config: Settings; None takes the defaults.
        hooks: What plug-ins take part in; None for none.
        redactor: Hides secrets in errors and logs; None knows only those that their
            names give away.
        shared_as: Transports for which this is equal, and not None, use the same
            connections; each ends its own calls only.
        random: Gives a float in [0, 1), for the jitter of delays.

    Raises:
        ConfigurationError: The proxy of the configuration cannot be used.

    Thread safety: thread-safe. A forked child starts with no connections and leaves
    its parent's alone.

    Blocking: a call blocks until its request's deadline at most.
    """

    def __init__(
        self,
        config: TransportConfig | None = None,
        *,
        hooks: ClientHooks | None = None,
        redactor: Redactor | None = None,
        shared_as: Hashable = None,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._setup = Setup(
            config=config or TransportConfig(),
            redactor=redactor or Redactor(),
            random=random,
            hooks=hooks or ClientHooks(),
        )
        if self.config.proxy is not None:
            parse_proxy(self.config.proxy)
        # By process, so that a forked child never shares its parent's: the first
        # thread to ask makes one, in one atomic step.
        self._pools: dict[int, PoolShare] = {}
        self._shared_as = shared_as
        # Set by `close`; shared by variants, like the pools.
        self._closed = threading.Event()

    def variant(
        self,
        *,
        retry: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
        secrets: Iterable[str | None] = (),
    ) -> Self:
        """Return a transport with the same connections, closed with this one.

        Args:
            retry: What its requests follow; None keeps this one's policy.
            headers: Headers of its requests, instead of this one's; None keeps those.
            secrets: What it hides besides what this one does.
        """
        config = evolve(
            self.config,
            retry=retry or self.config.retry,
            headers=self.config.headers if headers is None else headers,
        )
        redactor = Redactor(secrets, parent=self.redactor)
        other = copy.copy(self)
        other._setup = evolve(self._setup, config=config, redactor=redactor)  # noqa: SLF001 - our own
        return other

    @property
    def config(self) -> TransportConfig:
        """The settings."""
        return self._setup.config

    @property
    def hooks(self) -> ClientHooks:
        """What plug-ins take part in."""
        return self._setup.hooks

    @property
    def redactor(self) -> Redactor:
        """What hides secrets from logs, errors and plug-ins."""
        return self._setup.redactor

    def _pool(self) -> PoolShare:
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is None:
            if self._closed.is_set():
                raise ClientClosedError("the transport is closed; make a new one")
            share = shared_pools.join(self._shared_as, self.config)
            pool = self._pools.setdefault(pid, share)
            if self._closed.is_set():
                pool.close()  # `close` may have come by before there was one
            for other in [p for p in self._pools if p != pid]:
                inherited = self._pools.pop(other, None)
                if inherited is not None:
                    inherited.pool.forget()
        return pool

    def send(self, request: Request, *, call: CallHandle | None = None) -> Response:
        """Send a request and return its whole answer.

        Args:
            request: What to ask.
            call: Lets other threads end the call.

        Raises:
            PPIOAgentError: By the table of client.md 2.5; for a status that is not 2xx
                unless the request says that it is no failure.
        """
        pool = self._pool()
        call = call or CallHandle()
        pool.enter(call)
        try:
            if self._setup.hooks.middleware:
                return self._send_through(pool, call, request)
            return self._fetch(self._setup, pool, call, request)
        finally:
            pool.leave(call)

    @staticmethod
    def _fetch(
        setup: Setup, pool: PoolShare, call: CallHandle, request: Request
    ) -> Response:
        limit = setup.config.max_response_bytes

        def deliver(body: Body, answer: Response) -> Response:
            return evolve(answer, body=body.read_all(limit))

        return Attempts(setup, pool, call, request, deliver).result()

    def _send_through(
        self, pool: PoolShare, call: CallHandle, request: Request
    ) -> Response:
        """Send by way of the plug-ins' middleware."""
        chain = Chain(
            self._setup.hooks.middleware,
            lambda changed: self._fetch(
                self._setup.sent_from(request.url, changed), pool, call, changed
            ),
        )
        try:
            answer = chain.run(request)
            call.check()
            if isinstance(answer, RawStream):
                answer.bound(request.deadline)
                answer = answer.response(self.config.max_response_bytes)
        finally:
            chain.release()
        answer = self._claimed(request, answer)
        if request.raise_for_status and not request.succeeds(answer.status):
            raise self.error_for(request, answer)
        return answer

    def stream(self, request: Request, *, call: CallHandle | None = None) -> RawStream:
        """Send a request and return as soon as the head of its answer is there.

        The deadline of the request bounds the body, too.

        Args:
            request: What to ask.
            call: Lets other threads end the call, and then the stream.

        Raises:
            PPIOAgentError: As `send`.
        """
        pool = self._pool()
        call = call or CallHandle()
        pool.enter(call)
        try:
            if self._setup.hooks.middleware:
                return self._stream_through(pool, call, request)
            return self._open(self._setup, pool, call, request, leave=pool.leave)
        except BaseException:
            pool.leave(call)
            raise

    @staticmethod
    def _open(
        setup: Setup,
        pool: PoolShare,
        call: CallHandle,
        request: Request,
        *,
        leave: Callable[[CallHandle], None],
    ) -> RawStream:
        def deliver(body: Body, answer: Response) -> RawStream:
            return RawStream(
                body,
                call,
                answer,
                limit=setup.config.max_response_bytes,
                describe=attempts.describe,
                leave=leave,
            )

        attempts = Attempts(setup, pool, call, request, deliver)
        return attempts.result()

    def _stream_through(
        self, pool: PoolShare, call: CallHandle, request: Request
    ) -> RawStream:
        """Open a stream by way of the plug-ins' middleware."""
        chain = Chain(
            self._setup.hooks.middleware,
            lambda changed: self._open(
                self._setup.sent_from(request.url, changed),
                pool,
                call,
                changed,
                leave=lambda _: None,
            ),
        )
        try:
            answer = chain.run(request)
            call.check()
            if isinstance(answer, Response):
                chain.release()  # the answer is whole without them
                answer = RawStream.of(answer)
            answer.bound(request.deadline)
            answer.head = self._claimed(request, answer.head)
            if request.raise_for_status and not request.succeeds(answer.status):
                raise self.error_for(request, answer.response())
        except BaseException:
            chain.release()
            raise
        answer.adopt(
            call,
            limit=self.config.max_response_bytes,
            leave=pool.leave,
            others=[stream for stream in chain.streams if stream is not answer],
        )
        return answer

    def _claimed(self, request: Request, head: Response) -> Response:
        """Return an answer, which a middleware may have made, as the transport's own."""
        url = head.url or request.url
        return evolve(head, url=url, redactor=self._setup.redactor)

    def error_for(self, request: Request, response: Response) -> PPIOAgentError:
        """Return the error that a failure's answer stands for.

        For those who asked with `raise_for_status=False` and looked at the body first.
        """
        problem = Problem.read(response.body)
        error = answer_error(request, response, problem, self._setup.redactor)
        error.method = request.method
        error.url = self._setup.redactor.url(request.url)
        error.attempts = response.attempts
        return error

    def is_run_once(self, url: str, sandbox_id: str = "") -> bool:
        """Whether an earlier answer said that this peer runs a key only once.

        Args:
            url: Any URL of the peer's origin.
            sandbox_id: The `PPIO-Sandbox-Id` sent there, if one origin is many peers.
        """
        return self._setup.is_run_once(url, sandbox_id)

    def allow_connections(self, count: int) -> None:
        """Raise the limit of connections to at least `count`."""
        self._pool().pool.allow(count)

    def abort_all(self) -> None:
        """End all calls and streams under way with `ClientClosedError`."""
        self._pool().abort_all(ClientClosedError, "the call was aborted")

    def close(self) -> None:
        """Refuse new calls, end those under way, close all connections. Idempotent.

        Calls end with `ClientClosedError`, in their own threads. Connections that
        another transport uses, too, are left to it.
        """
        self._closed.set()
        pool = self._pools.get(os.getpid())
        if pool is not None:
            pool.close()

    def __repr__(self) -> str:
        return f"<Transport {'closed' if self._closed.is_set() else 'open'}>"
