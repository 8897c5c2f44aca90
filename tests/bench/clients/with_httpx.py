"""httpx, one client for all threads."""

from __future__ import annotations

from typing import Any

import httpx
from shapes import PROMPT, Threads


class Client(Threads):
    def __init__(self, url: str) -> None:
        self._url = f"{url}/invocations"
        self._client = httpx.Client(timeout=30)

    def call(self, request: dict[str, Any]) -> None:
        answer = self._client.post(self._url, json={"prompt": PROMPT, **request})
        assert answer.json()["result"]["prompt"] == PROMPT
