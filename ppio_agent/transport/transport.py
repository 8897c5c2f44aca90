"""The transport: sends requests, gives whole answers or streams, closes everything."""

from __future__ import annotations

import copy
import os
import random as _random
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from attrs import evolve

from ppio_agent._util.closing import Closing
from ppio_agent._util.redact import Redactor
from ppio_agent.exceptions import ClientClosedError, PPIOAgentError
from ppio_agent.wire.problem import Problem

from .attempts import Attempts, Body, ClientHeaders, Setup
from .calls import CallHandle
from .errors import answer_error
from .messages import Request, Response, TransportConfig
from .pool import ConnectionPool
from .route import parse_proxy
from .streams import RawStream

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Transport"]


class Transport(Closing):
    """Sends requests over kept connections.

    Args:
        config: Settings; None takes the defaults.
        client_headers: Asked for further headers before each attempt.
        redactor: Hides secrets in errors and logs; None knows only those that their
            names give away.
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
        client_headers: ClientHeaders | None = None,
        redactor: Redactor | None = None,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self._setup = Setup(
            config=config or TransportConfig(),
            redactor=redactor or Redactor(),
            random=random,
            client_headers=client_headers,
        )
        if self.config.proxy is not None:
            parse_proxy(self.config.proxy)
        # By process, so that a forked child never shares its parent's: the first
        # thread to ask makes one, in one atomic step.
        self._pools: dict[int, ConnectionPool] = {}
        # Set by `close`; shared by variants, like the pools.
        self._closed = threading.Event()

    def variant(self, *, max_retries: int, headers: Mapping[str, str]) -> Self:
        """Return a transport with the same connections, closed with this one.

        Args:
            max_retries: Further attempts of its requests.
            headers: Headers of its requests, instead of this one's.
        """
        retry = evolve(self.config.retry, max_retries=max_retries)
        config = evolve(self.config, retry=retry, headers=headers)
        other = copy.copy(self)
        other._setup = evolve(self._setup, config=config)  # noqa: SLF001 - our own
        return other

    @property
    def config(self) -> TransportConfig:
        """The settings."""
        return self._setup.config

    def _pool(self) -> ConnectionPool:
        pid = os.getpid()
        pool = self._pools.get(pid)
        if pool is None:
            if self._closed.is_set():
                raise ClientClosedError("the transport is closed; make a new one")
            pool = self._pools.setdefault(pid, ConnectionPool(self.config))
            for other in [p for p in self._pools if p != pid]:
                inherited = self._pools.pop(other, None)
                if inherited is not None:
                    inherited.forget()
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
        limit = self.config.max_response_bytes

        def deliver(body: Body, answer: Response) -> Response:
            return evolve(answer, body=body.read_all(limit))

        pool.enter(call)
        try:
            return Attempts(self._setup, pool, call, request, deliver).result()
        finally:
            pool.leave(call)

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

        def deliver(body: Body, answer: Response) -> RawStream:
            return RawStream(
                body,
                call,
                answer,
                limit=self.config.max_response_bytes,
                describe=attempts.describe,
                leave=pool.leave,
            )

        attempts = Attempts(self._setup, pool, call, request, deliver)
        pool.enter(call)
        try:
            return attempts.result()
        except BaseException:
            pool.leave(call)
            raise

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
        self._pool().allow(count)

    def abort_all(self) -> None:
        """End all calls and streams under way with `ClientClosedError`."""
        self._pool().abort_all(ClientClosedError, "the call was aborted")

    def close(self) -> None:
        """Refuse new calls, end those under way, close all connections. Idempotent.

        Calls end with `ClientClosedError`, in their own threads.
        """
        self._closed.set()
        pool = self._pools.get(os.getpid())
        if pool is not None:
            pool.close()

    def __repr__(self) -> str:
        return f"<Transport {'closed' if self._closed.is_set() else 'open'}>"
