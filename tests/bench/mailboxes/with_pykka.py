"""Pykka: a thread for each actor."""

from __future__ import annotations

from typing import Any

import pykka


class _Echo(pykka.ThreadingActor):
    def on_receive(self, message: Any) -> Any:
        return message


class System:
    def __init__(self, options: dict[str, Any]) -> None:
        self._refs: list[pykka.ActorRef[_Echo]] = []

    def start(self, actors: int) -> None:
        self.create(actors)

    def create(self, count: int) -> None:
        self._refs += [_Echo.start() for _ in range(count)]

    def ask(self, number: int) -> Any:
        return self._refs[number].ask({"n": 1})

    def flight(self, wide: int) -> None:
        ref = self._refs[0]
        for future in [ref.ask({"n": 1}, block=False) for _ in range(wide)]:
            future.get()

    def close(self) -> None:
        pykka.ActorRegistry.stop_all()
