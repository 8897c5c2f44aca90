"""User code on the thread that serves its request, as long as it is quick.

A thread inside user code can send no heartbeat and no 504 and does not notice that its
client has left, so an invocation and its answer need a thread each. But switching to
another thread costs more than all the rest of an instant request. So user code begins
on the thread that is there, and once it has run for some milliseconds, or streams, a
further thread takes over the answer; the first one has nothing to do with it any more.
After one that was slow, the next has a thread of its own from the beginning
(`Engine.quick`), until one is quick again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from ppio_agent.agent import Invocation
from ppio_agent.web import Relayed, Reply
from ppio_agent.web.exchange import Exchange

from .engine import Engine

__all__ = ["run_watched"]

# Seconds after which user code is no longer quick.
_QUICK = 0.005


class _Watch:
    """Decides which of two threads answers; each invocation has one answer."""

    __slots__ = ("_ended", "_lock", "_relay", "_relayed")

    def __init__(self, relay: Callable[[], bool]) -> None:
        # Guards _ended and _relayed.
        self._lock = threading.Lock()
        self._relay = relay
        self._relayed = False
        self._ended = False

    def relay(self) -> None:
        """Let another thread answer, unless one does or there is an outcome."""
        with self._lock:
            if not self._ended and not self._relayed:
                # Under the lock, although it may start a thread: until it is known
                # that there is one, the first thread must not leave.
                self._relayed = self._relay()

    def end(self) -> bool:
        """Note that user code has ended; return whether its own thread answers."""
        with self._lock:
            self._ended = True
            return not self._relayed


def run_watched(
    engine: Engine,
    exchange: Exchange,
    invocation: Invocation,
    finish: Callable[[], Reply],
) -> bool:
    """Run an invocation on the calling thread, where server and slots allow it.

    Args:
        engine: Has the slots.
        exchange: The request.
        invocation: Is new and was not started.
        finish: Waits for the invocation and makes its answer, on another thread.

    Returns:
        Whether it ran, and the calling thread is to answer. If not, nothing was run.

    Raises:
        Relayed: It ran, and another thread answers.
    """
    relay = exchange.environ.get("ppio.relay")
    if relay is None:
        return False
    watch = _Watch(partial(relay, exchange.environ, finish))

    run = partial(invocation.run, on_slow=watch.relay, quick=_QUICK)
    if not engine.run_here(run):
        return False
    if not watch.end():
        raise Relayed
    return True
