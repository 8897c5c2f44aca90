"""What the kernel's tests share: invocations made in one line."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ppio_agent._util.threads import WorkerPool
from ppio_agent.agent import Invocation, RequestContext, as_handler

_count = itertools.count(1)


def make_context(*, timeout: float | None = None, **fields: Any) -> RequestContext:
    """Return a context with an id of its own."""
    number = next(_count)
    deadline = None if timeout is None else time.monotonic() + timeout
    fields.setdefault("invocation_id", f"inv_{number}")
    return RequestContext(request_id=f"req_{number}", deadline=deadline, **fields)


def make_invocation(
    agent: Any,
    payload: Any = None,
    *,
    context: RequestContext | None = None,
    **options: Any,
) -> Invocation:
    """Return an invocation of `agent` that has not begun."""
    payload = {"n": 1} if payload is None else payload
    return Invocation(as_handler(agent), payload, context or make_context(), **options)


@contextmanager
def pool_of(threads: int = 4, waiting: int = 16) -> Iterator[WorkerPool]:
    """Yield a pool and close it."""
    pool = WorkerPool("ppio-invoke", max_threads=threads, max_waiting=waiting)
    try:
        yield pool
    finally:
        assert pool.close(5.0), "user code of a test still runs"
