"""Ours: on the memory store, or on the one that `url` names."""

from __future__ import annotations

import statistics
import threading
import time
import tracemalloc
from typing import Any

from ppio_agent.actors import ActorId, IActor, InProcessActorRuntime
from ppio_agent.actors.options import ActorOptions, RuntimeOptions

_VALUE = "x" * 1000


class _Echo(IActor):
    def receive(self, context: Any, message: Any) -> Any:
        return message.params


class _Keeping(IActor):
    """Keeps a value of 1 KB a turn."""

    def receive(self, context: Any, message: Any) -> Any:
        context.write_state("value", _VALUE)
        return message.params


class _Talking(IActor):
    """Keeps question and answer of each turn, as a conversation does."""

    def receive(self, context: Any, message: Any) -> Any:
        turn = context.read_state("turns") or 0
        context.write_state("turns", turn + 1)
        context.write_state(f"turn/{turn:08}", message.params)
        return message.params


class _Telling(IActor):
    """Tells a step each time it is let go on."""

    go_on = threading.Semaphore(0)

    def receive(self, context: Any, message: Any) -> Any:
        for _ in range(message.params["count"]):
            self.go_on.acquire()
            context.progress(time.perf_counter())
        return True


class System:
    def __init__(self, options: dict[str, Any]) -> None:
        url = options.get("url", "memory://")
        self._options = options
        self._runtime = InProcessActorRuntime(
            url,
            options=RuntimeOptions(
                actor=ActorOptions(mailbox_limit=10_000), max_live=200_000
            ),
        )
        kinds = {"echo": _Echo, "keep": _Keeping, "talk": _Talking, "tell": _Telling}
        for name, kind in kinds.items():
            self._runtime.register_actor_type(name, lambda _, kind=kind: kind())
        self._runtime.start()
        self._client = self._runtime.client()
        self._type = "keep" if "sync" in options else "echo"
        self._waits = {"timeout": 30.0} if options.get("pool") else {}
        self._ids: list[ActorId] = []

    def start(self, actors: int) -> None:
        self._ids = [ActorId(self._type, f"a-{n}") for n in range(actors)]

    def create(self, count: int) -> None:
        self._ids = [ActorId(self._type, f"c-{n}") for n in range(count)]
        for actor_id in self._ids:
            self._runtime.get_or_create_actor(actor_id)

    def ask(self, number: int) -> Any:
        return self._client.ask(self._ids[number], "echo", {"n": 1}, **self._waits)

    def flight(self, wide: int) -> None:
        send, actor_id = self._client.send_request, self._ids[0]
        for handle in [send(actor_id, "echo", {"n": 1}) for _ in range(wide)]:
            handle.get_response()

    def delays(self, count: int) -> list[float]:
        telling = ActorId("tell", "t-1")
        handle = self._client.send_request(telling, "go", {"count": count})
        found = []
        _Telling.go_on.release()
        for update in handle.watch_updates():
            now = time.perf_counter()
            if not update.status.terminal:
                found.append(now - update.data["progress"])
                _Telling.go_on.release()
        return found[count // 10 :]

    def conversation(self, turns: int) -> float:
        """Return the bytes that so many turns of 100 B leave."""
        text = "x" * 100
        first = ActorId("talk", "warm")
        self._client.ask(first, "say", {"text": text})
        talking = ActorId("talk", "t-1")
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(turns):
            self._client.ask(talking, "say", {"text": text})
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return after - before

    def growth(self, early: int, late: int) -> float:
        """Return how long turns around `late` take, to those around `early`."""
        talking, took = ActorId("talk", "g-1"), []
        for _ in range(late + 50):
            began = time.perf_counter()
            self._client.ask(talking, "say", {"text": "x" * 100})
            took.append(time.perf_counter() - began)
        around = [took[n - min(50, n // 2) : n + 50] for n in (early, late)]
        return statistics.median(around[1]) / statistics.median(around[0])

    def close(self) -> None:
        self._runtime.stop(1.0)
