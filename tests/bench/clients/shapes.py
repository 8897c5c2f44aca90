"""How calls are made many at a time: by threads, or by tasks of one event loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from typing import Any

__all__ = ["PROMPT", "Tasks", "Threads"]

PROMPT = "hello"


class Threads:
    """Base of blocking clients: `call(request)` makes one call."""

    def many(self, count: int, wide: int, request: dict[str, Any]) -> None:
        """Make `count` calls, `wide` at a time."""
        if wide == 1:
            for _ in range(count):
                self.call(request)
            return
        left = iter(range(count))
        lock = threading.Lock()
        failures: list[Exception] = []

        def work() -> None:
            try:
                while True:
                    with lock:
                        if next(left, None) is None:
                            return
                    self.call(request)
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(wide)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    batch = many

    def call(self, request: dict[str, Any]) -> None:
        raise TypeError("each client says how")

    def close(self) -> None:
        """Let go of nothing, unless a client has to."""


class Tasks:
    """Base of clients for asyncio: `acall(request)` and `astream(request)`."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def many(self, count: int, wide: int, request: dict[str, Any]) -> None:
        """Make `count` calls, `wide` at a time."""
        left = iter(range(count))

        async def work() -> None:
            while next(left, None) is not None:
                await self.acall(request)

        async def all_of_it() -> None:
            await asyncio.gather(*itertools.starmap(work, [()] * wide))

        self._loop.run_until_complete(all_of_it())

    batch = many

    def read(self, request: dict[str, Any]) -> list[tuple[float, str]]:
        """Read a whole stream; return its events with the times they came at."""

        async def all_of_it() -> list[tuple[float, str]]:
            return [(time.monotonic(), e) async for e in self.astream(request)]

        return self._loop.run_until_complete(all_of_it())

    async def acall(self, request: dict[str, Any]) -> None:
        raise TypeError("each client says how")

    def astream(self, request: dict[str, Any]) -> Any:
        raise TypeError("each client says how")

    def close(self) -> None:
        """Let go of nothing, unless a client has to."""
