"""Thespian, its system without further processes."""

from __future__ import annotations

import threading
from typing import Any

from thespian.actors import Actor, ActorSystem


class _Echo(Actor):
    def receiveMessage(self, message: Any, sender: Any) -> None:
        if isinstance(message, dict):
            self.send(sender, message)


class System:
    def __init__(self, options: dict[str, Any]) -> None:
        self._system = ActorSystem("simpleSystemBase")
        self._addresses: list[Any] = []
        # The system is not made for several threads.
        self._lock = threading.Lock()

    def start(self, actors: int) -> None:
        self.create(actors)

    def create(self, count: int) -> None:
        self._addresses += [self._system.createActor(_Echo) for _ in range(count)]

    def ask(self, number: int) -> Any:
        with self._lock:
            return self._system.ask(self._addresses[number], {"n": 1}, 10)

    def close(self) -> None:
        self._system.shutdown()
