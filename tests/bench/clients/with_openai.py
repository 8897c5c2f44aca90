"""openai's client, by its own calls for what it has no method for."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import openai
from shapes import PROMPT, Threads


class Client(Threads):
    def __init__(self, url: str) -> None:
        self._client = openai.OpenAI(api_key="sk-bench", base_url=url, timeout=30)

    def call(self, request: dict[str, Any]) -> None:
        body = {"prompt": PROMPT, **request}
        answer = self._client.post("/invocations", body=body, cast_to=object)
        assert answer["result"]["prompt"] == PROMPT

    def _stream(self, request: dict[str, Any]) -> openai.Stream[object]:
        return self._client.post(
            "/invocations",
            body=request,
            cast_to=object,
            stream=True,
            stream_cls=openai.Stream[object],
        )

    def read(self, request: dict[str, Any]) -> list[tuple[float, str]]:
        with self._stream(request) as stream:
            return [(time.monotonic(), json.dumps(event)) for event in stream]

    def silent(
        self, request: dict[str, Any]
    ) -> tuple[Callable[[], object], Callable[[], object]]:
        stream = self._stream(request)
        return lambda: next(stream), stream.close
