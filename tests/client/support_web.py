"""The agent that the sites of tests ask, on the fake platform."""

from __future__ import annotations

import json
import threading

from tests.support_platform import Exchange

__all__ = ["TalkingAgent"]


class TalkingAgent:
    """Streams what it is asked for; notes what was asked, and the runs cancelled.

    Its prompts: ``quiet`` says "a" and then waits until it is cancelled, ``fail``
    fails after "a", ``refuse`` fails at once; anything else is said word by word, or
    by a caller who wants no stream, given back.
    """

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.sessions: list[str | None] = []
        self.cancelled = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        request = exchange.request
        if request.path == "/ping":
            exchange.reply(200, {"status": "Healthy"}, {"X-PPIO-Agent": "1.0.0"})
        elif request.path.endswith("/cancel"):
            self.cancelled.set()
            exchange.reply(200, {"confirmed": True, "state": "cancelled"})
        elif request.path == "/invocations":
            self._run(exchange)
        else:
            exchange.reply(404, {"code": "invocation_not_found"})

    def _run(self, exchange: Exchange) -> None:
        body = exchange.request.json()
        self.asked.append(body)
        self.sessions.append(exchange.request.headers.get("x-ppio-session-id"))
        prompt = str(body.get("prompt"))
        if prompt == "refuse":
            exchange.reply(500, {
                "result": None, "status": "error", "duration": 0.1, "metadata": {},
                "error": "the password is sesame",
            })  # fmt: skip
        elif exchange.request.headers["accept"] == "text/event-stream":
            self._stream(exchange, prompt)
        else:
            exchange.reply(200, {"result": body, "status": "success", "duration": 0.1})

    def _stream(self, exchange: Exchange, prompt: str) -> None:
        exchange.start_stream(invocation_id="run1")
        words = ["a"] if prompt in {"quiet", "fail"} else prompt.split()
        for number, word in enumerate(words, 1):
            exchange.send(f"id: {number}\ndata: {json.dumps(word)}\n\n".encode())
        if prompt == "quiet":
            self.cancelled.wait(10)
        if prompt == "fail":
            record = {"error": "the password is sesame", "code": "invocation_failed"}
            exchange.send(f"event: error\ndata: {json.dumps(record)}\n\n".encode())
        record = {"status": "succeeded", "events": len(words)}
        exchange.send(f"event: end\ndata: {json.dumps(record)}\n\n".encode())
        exchange.end_stream()
