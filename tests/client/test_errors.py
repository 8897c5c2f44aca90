"""Faults between client, platform and agent: typed, safe to retry, free of secrets."""

from __future__ import annotations

import copy
import logging
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ppio_agent.client import AgentRuntimeClient, ClientConfig
from ppio_agent.exceptions import (
    AuthenticationError,
    InternalServerError,
    InvocationError,
    NetworkError,
    PPIOAgentError,
    ProtocolError,
    RequestTimeoutError,
    ServiceUnavailableError,
    ValidationError,
)
from tests.support import SLOW
from tests.support_platform import Exchange, FakePlatform, echo_agent

Make = Callable[..., AgentRuntimeClient]


class TestTime:
    def test_an_agent_that_is_never_free(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """503 for ever ends by the deadline, as what it is."""
        platform.on("POST", "/inv", lambda e: e.reply(503, {"message": "busy"}))
        session = make_client(max_retries=1000).create_session("tpl1")
        started = time.monotonic()
        with pytest.raises(ServiceUnavailableError, match="busy") as caught:
            session.invoke("Hi", timeout=1)

        assert time.monotonic() - started < 1.1 * SLOW
        assert caught.value.attempts > 1

    def test_a_server_that_drips_its_head(self, make_client: Make) -> None:
        """A byte of a header now and then does not stretch the deadline."""
        with _dripping() as url:
            client = make_client(base_url=url, request_timeout=0.5)
            started = time.monotonic()
            with pytest.raises(RequestTimeoutError):
                client.list_templates()

        assert time.monotonic() - started < 0.7 * SLOW


class TestRetries:
    def test_a_kept_connection_that_was_closed_is_replaced(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """The same key goes again, and the agent runs once."""
        session = make_client(max_retries=3).create_session("tpl1")
        session.invoke("first")
        dropped = []

        def drop(exchange: Exchange) -> None:
            if not dropped:
                dropped.append(exchange.request.headers["idempotency-key"])
                exchange.cut()

        platform.on("POST", "/inv", drop)
        response = session.invoke("second")

        assert response.result["count"] == 2
        sent = platform.seen("POST", "/inv")[1:]
        assert [r.headers["idempotency-key"] for r in sent] == dropped * 2

    def test_a_bare_agent_is_not_run_twice(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """Reset after the request, by a peer that knows no keys: nobody tries again."""

        def bare(exchange: Exchange) -> None:
            if exchange.request.path == "/ping":
                reply = {"status": "Healthy"}
                exchange.reply(200, reply, {"Connection": "close"})
                exchange.cut()
            else:
                exchange.cut()

        platform.agent = bare
        platform.on("POST", "/sandboxes$", _closing(platform))
        session = make_client(max_retries=3).create_session("tpl1")
        with pytest.raises(NetworkError):
            session.invoke("Hi")

        assert len(platform.seen("POST", "/inv")) == 1

    def test_a_run_once_agent_is_asked_again(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """It had said so in its answer to a ping."""
        session = make_client(max_retries=3).create_session("tpl1")
        cuts = iter([True, True, False])
        platform.on("POST", "/inv", lambda e: e.cut() if next(cuts) else None)

        assert session.invoke("Hi").status == "success"
        assert len(platform.seen("POST", "/inv")) == 3

    def test_a_sandbox_that_is_gone_is_not_waited_for(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """The edge says so with a 502, which is retried in any other case."""
        client = make_client(max_retries=3)
        client.invoke_agent("tpl1", "Hi", session_id="s")
        platform.sandboxes["sb1"].state = "killed"
        platform.killed.append("sb1")
        response = client.invoke_agent("tpl1", "Hi", session_id="s")

        assert response.sandbox_id == "sb2"
        assert len(platform.seen("POST", "/inv")) == 3

    def test_an_envelope_is_the_end_of_a_run(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """A failed agent is not run again."""
        failed = {"result": None, "status": "error", "error": "boom"}
        platform.on("POST", "/inv", lambda e: e.reply(503, failed))
        session = make_client(max_retries=3).create_session("tpl1")
        with pytest.raises(InvocationError):
            session.invoke("Hi")

        assert len(platform.seen("POST", "/inv")) == 1


class TestClasses:
    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            (lambda e: e.reply(401), AuthenticationError),
            (lambda e: e.reply(400, {"message": "no code"}), ValidationError),
            (lambda e: e.reply(500, raw=b"oops"), InternalServerError),
            (
                lambda e: e.reply(
                    502, raw=b"<html>bad gateway", content_type="text/html"
                ),
                ServiceUnavailableError,
            ),
            (lambda e: e.reply(200, raw=b"<html>"), ProtocolError),
            (lambda e: e.reply(200, {"no": "templates"}), ProtocolError),
            (lambda e: e.cut(), NetworkError),
        ],
    )
    def test_each_fault_is_one_class(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        answer: Callable[[Exchange], None],
        expected: type[PPIOAgentError],
    ) -> None:
        """Typed, located, and the same after pickle and copy."""
        platform.on("GET", "/templates", answer)
        with pytest.raises(PPIOAgentError) as caught:
            client.list_templates()

        error = caught.value
        assert type(error) is expected
        assert error.request_id
        for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert str(twin) == str(error)
            assert twin.__dict__ == error.__dict__

    def test_a_created_sandbox_without_an_id(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The path in the answer is told, the answer itself is not."""
        platform.on("POST", "/sandboxes$", lambda e: e.reply(201, {"templateID": "t"}))
        with pytest.raises(ProtocolError, match=r"\$\.sandboxID: is missing"):
            client.create_session("tpl1")

    def test_nobody_answers(self, make_client: Make) -> None:
        """Refused and unknown hosts are network errors with their cause."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))  # ours, and nobody listens on it
            refused = f"http://127.0.0.1:{silent.getsockname()[1]}"
            for url in (refused, "https://nowhere.invalid"):
                with pytest.raises(NetworkError) as caught:
                    make_client(base_url=url).list_templates()

                assert caught.value.__cause__ is not None


def test_secrets_stay_secret(
    platform: FakePlatform, caplog: pytest.LogCaptureFixture
) -> None:
    """Key and proxy password are in no log, repr, error or pickle of one."""
    secrets = ("sk-SECRET123456789", "hunter2-of-the-proxy")

    def tell_all(exchange: Exchange) -> None:
        if exchange.request.path == "/ping":
            echo_agent(exchange)
        else:
            exchange.reply(500, {"message": f"{exchange.request.headers} {secrets[0]}"})

    platform.agent = tell_all
    config = ClientConfig(base_url=platform.url, max_retries=1, forward_api_key=True)
    client = AgentRuntimeClient(secrets[0], config=config)
    shown = [repr(client), repr(client.auth), repr(config)]
    with caplog.at_level(logging.DEBUG), client:
        session = client.create_session("tpl1")
        shown.append(repr(session))
        with pytest.raises(InternalServerError) as caught:
            session.invoke("Hi")
        shown += [str(caught.value), repr(caught.value.__dict__)]
        shown.append(repr(pickle.dumps(caught.value)))
    proxied = ClientConfig(base_url=platform.url, proxy=f"http://me:{secrets[1]}@h:1")
    shown.append(repr(proxied) + repr(proxied.explain()))

    shown.append(caplog.text)
    for secret in secrets:
        assert secret not in "\n".join(shown)


def _closing(platform: FakePlatform) -> Callable[[Exchange], None]:
    """Create as usual, then close, so that the next request has a fresh connection."""

    def answer(exchange: Exchange) -> None:
        platform._create(exchange)
        exchange.cut()

    return answer


@contextmanager
def _dripping() -> Iterator[str]:
    server = socket.create_server(("127.0.0.1", 0))
    stop = threading.Event()

    def serve() -> None:
        peer, _ = server.accept()
        with peer:
            peer.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not stop.wait(0.05):
                try:
                    peer.sendall(b"x")
                except OSError:
                    return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
    finally:
        stop.set()
        thread.join()
        server.close()
