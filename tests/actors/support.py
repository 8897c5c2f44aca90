"""Actors and runtimes that tests of several modules use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ppio_agent.actors import (
    ActorId,
    ActorOptions,
    IActor,
    IActorRuntimeContext,
    InProcessActorRuntime,
    RuntimeOptions,
)
from ppio_agent.wire.actors import ActorRequestMessage
from tests.support import SLOW

__all__ = ["Gate", "Made", "Receive", "actor", "running"]

Receive = Callable[[IActorRuntimeContext, ActorRequestMessage], Any]


class Made(IActor):
    """An actor made of a function."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive

    def receive(
        self, context: IActorRuntimeContext, message: ActorRequestMessage
    ) -> Any:
        return self._receive(context, message)


class Gate:
    """What turns wait at, and the test lets them pass."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        assert self.opened.wait(20.0 * SLOW)

    def wait(self) -> None:
        """Wait till somebody is there."""
        assert self.reached.wait(10.0 * SLOW)


def actor(key: str = "1") -> ActorId:
    """Return the id of an actor of `running`."""
    return ActorId("t", key)


@contextmanager
def running(
    receive: Receive,
    *,
    storage: Any = None,
    runtime_options: RuntimeOptions | None = None,
    **options: Any,
) -> Iterator[InProcessActorRuntime]:
    """Run actors of the type `t`, made of a function; `options` are `ActorOptions`."""
    runtime = InProcessActorRuntime(storage, options=runtime_options)
    runtime.register_actor_type(
        "t", lambda _context: Made(receive), options=ActorOptions(**options)
    )
    runtime.start()
    try:
        yield runtime
    finally:
        runtime.stop(drain=5.0 * SLOW)
