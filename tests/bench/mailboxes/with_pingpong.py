"""Two threads and two `SimpleQueue`s: what a round trip between threads costs at least."""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import Any


class System:
    def __init__(self, options: dict[str, Any]) -> None:
        self._there: SimpleQueue[Any] = SimpleQueue()
        self._back: SimpleQueue[Any] = SimpleQueue()
        self._thread = threading.Thread(target=self._echo)

    def start(self, actors: int) -> None:
        self._thread.start()

    def _echo(self) -> None:
        while (message := self._there.get()) is not None:
            self._back.put(message)

    def ask(self, number: int) -> Any:
        self._there.put({"n": 1})
        return self._back.get()

    def close(self) -> None:
        self._there.put(None)
        self._thread.join()
