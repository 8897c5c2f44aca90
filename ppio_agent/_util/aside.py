"""Threads for what must not hold up the thread on which it becomes due.

That the end of an invocation is asked for, or has come, is known first on threads that
many share: the one that keeps all deadlines, those that answer `/ping`, those of a web
site. What has to be done then may block.
"""

from __future__ import annotations

from collections.abc import Callable

from .threads import WorkerPool

__all__ = ["run_aside"]

_pool = WorkerPool("ppio-aside", max_threads=8, max_waiting=64)


def run_aside(fn: Callable[[], object]) -> None:
    """Run `fn()` on a thread that nobody waits for; here if there is none to be had.

    The threads are made when they are needed, and stay: 8 at most for the process,
    for which 64 more functions may wait. `fn` answers for its own errors.
    """
    try:
        _pool.submit(fn)
    except RuntimeError:  # all are busy, or the system has no more
        fn()
