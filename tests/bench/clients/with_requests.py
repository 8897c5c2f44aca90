"""requests, a session for each thread, with sseclient-py for streams."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import requests
import sseclient
from shapes import PROMPT, Threads


class Client(Threads):
    def __init__(self, url: str) -> None:
        self._url = f"{url}/invocations"
        self._sessions = threading.local()

    def _session(self) -> requests.Session:
        session = getattr(self._sessions, "one", None)
        if session is None:
            session = self._sessions.one = requests.Session()
        return session

    def call(self, request: dict[str, Any]) -> None:
        body = {"prompt": PROMPT, **request}
        answer = self._session().post(self._url, json=body, timeout=30)
        assert answer.json()["result"]["prompt"] == PROMPT

    def read(self, request: dict[str, Any]) -> list[tuple[float, str]]:
        answer = self._session().post(self._url, json=request, stream=True, timeout=30)
        with answer:
            events = sseclient.SSEClient(answer.iter_content(None)).events()
            return [(time.monotonic(), event.data) for event in events]

    def silent(
        self, request: dict[str, Any]
    ) -> tuple[Callable[[], object], Callable[[], object]]:
        answer = self._session().post(self._url, json=request, stream=True, timeout=30)
        events = sseclient.SSEClient(answer.iter_content(None)).events()
        return lambda: next(events), answer.close
