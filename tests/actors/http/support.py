"""What the tests of the HTTP API share: agents, and a client that hides nothing."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any

from ppio_agent.actors import EchoAgent, IActor, InProcessActorRuntime
from ppio_agent.actors.http.server import ActorServer
from ppio_agent.actors.runtime_abstractions import (
    ActorResponseMessage,
    RequestStatus,
)
from tests.serving.support import JSON, SSE, Answer, Gate, HttpAt

__all__ = ["ENDS", "SSE", "Answer", "Http", "events_of", "register_agents", "said"]


def said(text: str = "hi", **more: Any) -> dict[str, Any]:
    """Return the body of a run with one message."""
    return {"messages": [{"role": "user", "content": text}], **more}


ENDS: dict[str, dict[str, Any]] = {
    "text": {"status": RequestStatus.FAILED, "data": "oops"},
    "null": {"status": RequestStatus.FAILED, "data": None},
    "odd": {"status": RequestStatus.FAILED, "data": {"code": 5, "error": [1]}},
    "list": {"status": RequestStatus.FAILED, "data": {"code": [], "retryable": "x"}},
    "nothing": {"status": RequestStatus.COMPLETED, "data": None},
}


class Counter(IActor):
    """Counts its turns; takes no text, but methods."""

    def receive(self, context: Any, message: Any) -> Any:
        if message.method == "fail":
            raise ValueError("secret text of a crash")
        if message.method == "end":
            context.complete_request(
                message.message_id,
                ActorResponseMessage(message.message_id, **ENDS[message.params["as"]]),
            )
            return None
        if message.method == "run":
            return 17
        count = (context.read_state("count") or 0) + 1
        context.write_state("count", count)
        return {"count": count, "params": message.params}


def register_agents(runtime: InProcessActorRuntime, gate: Gate) -> None:
    """Register what the tests talk to.

    `echo`; `slow` waits for the gate; `stubborn` too, whatever it is told; `words`
    streams what it was told, and waits at a full stop; `broken` fails; `counter` is no
    agent; `hidden` cannot be reached.
    """

    def slow(request: dict[str, Any], context: Any) -> str:
        gate.reach()
        while not gate.opened.wait(0.01):
            context.check()
        return "at last"

    def stubborn(request: dict[str, Any]) -> str:
        gate.stand()
        return "at last"

    def words(request: dict[str, Any], context: Any) -> Iterator[str]:
        for word in request["prompt"].split():
            if word == ".":
                gate.stand()
            else:
                yield word

    def broken(request: dict[str, Any]) -> str:
        raise ValueError("secret text of a failure")

    runtime.register_agent("echo", EchoAgent(), kind="test", description="Says it.")
    runtime.register_agent("slow", slow)
    runtime.register_agent("stubborn", stubborn)
    runtime.register_agent("words", words)
    runtime.register_agent("broken", broken)
    runtime.register_actor_type("counter", lambda context: Counter(), expose=True)
    runtime.register_actor_type("hidden", lambda context: Counter())


def events_of(lines: Iterator[bytes]) -> Iterator[dict[str, str]]:
    """Yield events as they come, by the names of their lines; comments as `""`."""
    event: dict[str, str] = {}
    for line in lines:
        text = line.decode().rstrip("\n")
        if text:
            name, _, value = text.partition(":")
            event[name] = value.removeprefix(" ")
        elif event:
            yield event
            event = {}


class Http(HttpAt):
    """Talks to a server of this process."""

    def __init__(self, server: ActorServer, runtime: InProcessActorRuntime) -> None:
        super().__init__(server.port)
        self.server = server
        self.runtime = runtime

    def post(self, path: str, body: Any = None, **headers: str) -> Answer:
        """Send a request with a JSON body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, {**JSON, **named})

    def busy(self, lane: str) -> int:
        """Return how many threads of a lane of the server serve requests."""
        found: int = self.server._server.stats()["lanes"][lane]["busy"]
        return found

    def delete(self, path: str, **headers: str) -> Answer:
        return self.request("DELETE", path, headers=headers)

    def run(self, agent: str, body: Any, **headers: str) -> Answer:
        """Say something to an agent."""
        return self.post(f"/agents/{agent}/run", body, **headers)

    def events(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] = SSE,
    ) -> tuple[http.client.HTTPConnection, Iterator[dict[str, str]]]:
        """Open a stream; return its connection and the events as they come."""
        data = None if body is None else json.dumps(body).encode()
        connection, response = self.open(method, path, data, headers)
        assert response.status == 200, response.read()
        return connection, events_of(iter(response.readline, b""))
