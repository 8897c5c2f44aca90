"""Streams on their way to visitors, and the one client of a site."""

from __future__ import annotations

import contextvars
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import evolve

from ppio_agent._util.threads import NoThreadError, start_thread
from ppio_agent.client.sites import stream_format
from ppio_agent.client.sites.visitor import SharedClient, VisitorStream, parse_settings
from ppio_agent.client.stream import CancelResult
from ppio_agent.exceptions import (
    AuthenticationError,
    ConfigurationError,
    InvocationError,
    ValidationError,
)
from ppio_agent.wire.sse import SSEEvent
from tests.support import new_threads, wait_until
from tests.support_platform import KEY, FakePlatform

NAME = contextvars.ContextVar("NAME", default="nobody")


class Stream:
    """Stands for an agent's stream: gives what it is told to, and waits if asked."""

    def __init__(self, *chunks: Any) -> None:
        self.chunks = chunks
        self.taken = 0
        self.cancelled = 0
        self.go_on = threading.Event()
        self.names: list[str] = []

    def events(self) -> Iterator[SSEEvent]:
        for chunk in self.chunks:
            self.names.append(NAME.get())
            if chunk is Ellipsis:
                self.go_on.wait(10)
                continue
            self.taken += 1
            if isinstance(chunk, Exception):
                raise chunk
            yield SSEEvent(json.dumps(chunk))

    def cancel(self) -> CancelResult:
        self.cancelled += 1
        self.go_on.set()
        return CancelResult(confirmed=True, state="cancelled")


def visit(stream: Any, format: Any = "sse", **options: Any) -> VisitorStream:
    options = {"heartbeat": 5.0, **options}
    return VisitorStream(stream, stream_format(format), **options)


def test_first_bytes_come_before_the_agent_says_anything() -> None:
    """So that the head of the answer is sent at once."""
    stream = Stream(...)
    body = visit(stream)
    assert next(body) == b": open\n\n"
    assert stream.taken == 0
    body.close()


def test_a_whole_stream_has_its_chunks_and_an_end() -> None:
    """And closing it afterwards asks nobody."""
    stream = Stream("a", {"b": 1})
    body = visit(stream)
    expected = b': open\n\ndata: "a"\n\ndata: {"b":1}\n\nevent: end\ndata: {}\n\n'
    assert b"".join(body) == expected
    assert list(body) == []
    body.close()
    assert stream.cancelled == 0


@pytest.mark.parametrize(("format", "beat"), [("sse", b": hb\n\n"), ("ndjson", b"\n")])
def test_silence_has_heartbeats(format: str, beat: bytes) -> None:
    """Whatever the agent does, the server has something to write."""
    stream = Stream(..., "a")
    body = visit(stream, format, heartbeat=0.01)
    next(body)
    assert [next(body), next(body)] == [beat, beat]
    stream.go_on.set()
    assert b'"a"' in b"".join(body)
    body.close()


def test_an_error_after_the_start_is_one_event_or_a_cut() -> None:
    """Not one word of the agent is in it."""
    events = list(visit(Stream("a", InvocationError("the secret"))))
    assert events[1] == b'data: "a"\n\n'
    assert events[2].startswith(b"event: error\ndata: ")
    assert b"secret" not in b"".join(events)
    assert len(events) == 3
    text = visit(Stream("a", InvocationError("the secret")), "text")
    assert [next(text), next(text)] == [b"", b"a"]
    with pytest.raises(InvocationError):
        next(text)
    assert list(text) == []


def test_a_failure_of_our_own_is_an_error_event_too() -> None:
    """What has no JSON form, or any bug, must not leave a visitor waiting."""
    events = list(visit(Stream(object())))
    assert b'"status":500' in events[-1]


def test_a_chunk_that_cannot_be_written_ends_the_run() -> None:
    """The agent's stream has not ended by that."""

    def refuse(_: SSEEvent) -> bytes:
        raise UnicodeError("no form")

    stream = Stream("a", ...)
    form = evolve(stream_format("sse"), chunk=refuse)
    body = VisitorStream(stream, form, heartbeat=5.0)  # type: ignore[arg-type]  # stands for one
    assert b'"status":500' in list(body)[-1]
    body.close()
    wait_until(lambda: stream.cancelled == 1)


def test_leaving_during_silence_cancels_the_run() -> None:
    """On another thread, once; the thread that read goes on and ends."""
    threads = new_threads("ppio-client-visitor")
    stream = Stream("a", ...)
    body = visit(stream)
    assert [next(body), next(body)][1] == b'data: "a"\n\n'
    body.close()
    body.close()
    wait_until(lambda: stream.cancelled and not threads())
    assert stream.cancelled == 1


def test_leaving_before_anything_was_sent_cancels_the_run() -> None:
    """No thread was started for it."""
    threads = new_threads("ppio-client-visitor")
    stream = Stream("a")
    visit(stream).close()
    wait_until(lambda: stream.cancelled == 1)
    assert (stream.taken, threads()) == (0, [])


def test_a_slow_visitor_holds_the_agent_up() -> None:
    """A bounded number of chunks is read ahead; leaving frees the thread that waits."""
    threads = new_threads("ppio-client-visitor")
    stream = Stream(*range(1000))
    body = visit(stream)
    next(body)
    wait_until(lambda: stream.taken == 17)
    body.close()
    wait_until(lambda: not threads())
    assert stream.taken <= 18
    wait_until(lambda: stream.cancelled == 1)


def test_the_stream_is_read_in_the_context_of_its_request() -> None:
    """Plug-ins of the client see the values of the request."""
    NAME.set("ann")
    stream = Stream("a")
    list(visit(stream))
    assert stream.names == ["ann"]


def test_a_heartbeat_that_is_no_time_is_refused() -> None:
    """When the response is made."""
    with pytest.raises(ValidationError, match="heartbeat"):
        visit(Stream(), heartbeat=0)


def test_settings_are_those_of_the_client_and_its_keys() -> None:
    """All in one dict; without one, everything is the environment's or a default."""
    found = parse_settings({"api_key": "sk-0123456789ab", "timeout": 20})
    assert (found.api_key, found.api_secret) == ("sk-0123456789ab", None)
    assert found.config.timeout == 20.0
    assert found.config.origin("timeout") == "argument"
    assert parse_settings(None).api_key is None
    assert "sk-0123456789ab" not in repr(found)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"timout": 3}, "PPIO_AGENT has no setting 'timout'; did you mean 'timeout'"),
        ({"api-key": "k"}, "has no setting 'api-key'; did you mean 'api_key'"),
        ({7: 3}, "PPIO_AGENT has no setting 7"),
        ({"api_key": 7}, "the setting api_key of PPIO_AGENT is no text"),
        ({"timeout": "soon"}, "the setting timeout has to be a number"),
        ({"base_url": "http://example.com"}, "use https"),
        ("sk-0123456789ab", "has to be a dict .* not str"),
    ],
)
def test_settings_that_cannot_be_used_are_named(value: Any, told: str) -> None:
    """With the nearest name there is; never with a value."""
    with pytest.raises(ConfigurationError, match=told) as caught:
        parse_settings(value)
    assert "sk-0123456789ab" not in str(caught.value)


def _site(**settings: Any) -> SharedClient:
    found = parse_settings({"base_url": "http://127.0.0.1:9", "api_key": "sk-1234567"})
    return SharedClient(lambda: parse_settings(settings) if settings else found)


def test_a_process_has_one_client() -> None:
    """However many threads ask first; a closed one is replaced."""
    shared, found, barrier = _site(), [], threading.Barrier(16)

    def get() -> None:
        barrier.wait(10)
        found.append(shared.get())

    threads = [start_thread("getter", get) for _ in range(16)]
    for thread in threads:
        thread.join(10)
    assert len(found) == 16
    assert len(set(map(id, found))) == 1
    shared.close()
    assert shared.get() is not found[0]
    shared.close()


def test_settings_are_looked_at_when_the_client_is_made() -> None:
    """And again after a failure."""
    shared = _site(base_url="http://127.0.0.1:9")
    for _ in range(2):
        with pytest.raises(AuthenticationError, match="no API key"):
            shared.get()


def test_a_child_forked_while_the_client_is_made_makes_its_own() -> None:
    """The lock that another thread of the parent holds is not waited for."""
    shared = _site()
    with shared._lock:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if shared.get().config.timeout else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


EXITING = """
import sys
from ppio_agent.client.sites.visitor import SharedClient, parse_settings

site = SharedClient(
    lambda: parse_settings({"base_url": sys.argv[1], "api_key": sys.argv[2]})
)
assert site.get().invoke_agent("tpl1", "Hi", session_id="s").status == "success"
session = site.get().create_session("tpl1")
"""


def test_a_process_that_ends_closes_its_client(platform: FakePlatform) -> None:
    """But leaves the conversations that it began to the other workers."""
    subprocess.run([sys.executable, "-c", EXITING, platform.url, KEY], check=True)
    assert (len(platform.sandboxes), platform.alive) == (2, ["sb1"])


def test_closing_goes_on_without_threads(
    client: Any, platform: FakePlatform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other, where the system starts none, or the process ends."""
    for name in ("a", "b"):
        client.invoke_agent("tpl1", "Hi", session_id=name)

    def refuse(name: str, *_: object) -> None:
        raise NoThreadError(name)

    monkeypatch.setattr("ppio_agent._util.threads.start_thread", refuse)
    assert client.close_all() == {}
    assert (len(platform.sandboxes), platform.alive) == (2, [])
