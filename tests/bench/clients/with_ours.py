"""Ours: a session of `AgentRuntimeClient`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from shapes import PROMPT, Threads

from ppio_agent.client import AgentRuntimeClient, pool


class Client(Threads):
    def __init__(self, url: str) -> None:
        self._client = AgentRuntimeClient("sk-bench", base_url=url)
        self._session = self._client.create_session("bench")

    def call(self, request: dict[str, Any]) -> None:
        answer = self._session.invoke({"prompt": PROMPT, **request})
        assert answer.result["prompt"] == PROMPT

    def batch(self, count: int, wide: int, request: dict[str, Any]) -> None:
        requests = [{"prompt": PROMPT, **request}] * count
        with self._client.invoke_many("bench", requests, sessions=pool(wide)) as batch:
            assert len(batch.results()) == count

    def read(self, request: dict[str, Any]) -> list[tuple[float, str]]:
        with self._session.invoke_stream(request) as stream:
            return [(time.monotonic(), event.data) for event in stream.events()]

    def silent(
        self, request: dict[str, Any]
    ) -> tuple[Callable[[], object], Callable[[], object]]:
        stream = self._session.invoke_stream(request)
        return lambda: next(stream), stream.close

    def another_session(self) -> None:
        self._client.create_session("bench")

    def close(self) -> None:
        self._client.close()
