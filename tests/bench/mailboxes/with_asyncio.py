"""A task and a queue for each actor on one event loop, called from other threads.

So the seed's own runtime was made; blocking callers reach it as they reach any loop.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any


class System:
    def __init__(self, options: dict[str, Any]) -> None:
        self._queues: list[asyncio.Queue[Any]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def start(self, actors: int) -> None:
        self.create(actors)

    def create(self, count: int) -> None:
        self._run(self._create(count))

    async def _create(self, count: int) -> None:
        for _ in range(count):
            queue: asyncio.Queue[Any] = asyncio.Queue()
            self._queues.append(queue)
            self._tasks.append(self._loop.create_task(self._echo(queue)))
        await asyncio.sleep(0)

    @staticmethod
    async def _echo(queue: asyncio.Queue[Any]) -> None:
        while True:
            message, future = await queue.get()
            future.set_result(message)

    async def _ask(self, number: int) -> Any:
        future = self._loop.create_future()
        await self._queues[number].put(({"n": 1}, future))
        return await future

    def ask(self, number: int) -> Any:
        return self._run(self._ask(number))

    def flight(self, wide: int) -> None:
        self._run(self._flight(wide))

    async def _flight(self, wide: int) -> None:
        await asyncio.gather(*(self._ask(0) for _ in range(wide)))

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
