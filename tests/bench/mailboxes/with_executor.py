"""A `ThreadPoolExecutor` of one thread: serial calls with futures."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any


class System:
    def __init__(self, options: dict[str, Any]) -> None:
        self._pool = ThreadPoolExecutor(1)

    def start(self, actors: int) -> None:
        self.ask(0)

    @staticmethod
    def _echo(message: Any) -> Any:
        return message

    def ask(self, number: int) -> Any:
        return self._pool.submit(self._echo, {"n": 1}).result()

    def flight(self, wide: int) -> None:
        for future in [self._pool.submit(self._echo, {"n": 1}) for _ in range(wide)]:
            future.result()

    def close(self) -> None:
        self._pool.shutdown()
