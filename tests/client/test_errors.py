"""Faults between client, platform and agent: typed, safe to retry, free of secrets."""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import logging
import pickle
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from ppio_agent import exceptions
from ppio_agent.client import AgentRuntimeClient, ClientConfig, SandboxSession
from ppio_agent.exceptions import (
    AuthenticationError,
    InternalServerError,
    InvocationError,
    NetworkError,
    NotFoundError,
    PermissionDeniedError,
    PPIOAgentError,
    PPIOAgentRuntimeError,
    ProtocolError,
    QuotaExceededError,
    RateLimitError,
    RequestTimeoutError,
    ServiceUnavailableError,
    SessionClosedError,
    SessionNotFoundError,
    ValidationError,
)
from ppio_agent.hooks import hookimpl
from ppio_agent.testing import (
    FaultServer,
    Peer,
    Received,
    Script,
    answer,
    busy,
    cut,
    drip,
    in_turn,
    reply,
    reset,
    retry_after_kinds,
    silence,
)
from ppio_agent.transport import Transport
from ppio_agent.transport.errors import PastFailure
from tests.support import SLOW, needs_program
from tests.support_net import certificate
from tests.support_platform import (
    Exchange,
    FakePlatform,
    FakeSandbox,
    template_record,
)

Make = Callable[..., AgentRuntimeClient]
Tls = tuple[ssl.SSLContext, Path]


@pytest.fixture
def steady_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pause for 0.45, 0.9, 1.8 … seconds: by chance one ends just before a deadline."""
    defaults = Transport.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "random", lambda: 0.9)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A server's TLS context and the file of its certificate."""
    needs_program("openssl")
    made = certificate(tmp_path_factory.mktemp("tls"))
    assert made is not None
    return made


def _agent(script: Script) -> Script:
    """Answer pings; the rest goes by the script."""

    def agent(peer: Peer, request: Received) -> None:
        well = reply(200, b'{"status": "Healthy"}')
        (well if request.target.endswith("/ping") else script)(peer, request)

    return agent


def _edge_at(platform: FakePlatform, url: str) -> AbstractContextManager[None]:
    """Let sandboxes be reached at another address than the platform's."""

    def create(exchange: Exchange) -> None:
        port = url.rpartition(":")[2]
        body = platform.sandbox_body(FakeSandbox(f"at{port}", "tpl1", {}))
        exchange.reply(201, {**body, "edgeURL": url})

    return platform.overriding("POST", "/sandboxes$", create)


@pytest.mark.usefixtures("steady_pauses")
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

    def test_no_server_stretches_the_deadline(
        self, make_client: Make, platform: FakePlatform, tls: Tls
    ) -> None:
        """`timeout=2` is over after 2.1 s, over TLS, too; all six at a time."""
        scripts: dict[str, Script] = {
            "drips": drip(answer(200, b"{}"), every=1.0),
            "is silent": silence,
            "is busy": reply(503, b'{"message": "busy"}'),
        }

        client = make_client(max_retries=1000, ca_bundle=str(tls[1]))

        def over(session: SandboxSession) -> tuple[float, PPIOAgentError]:
            started = time.monotonic()
            with pytest.raises(PPIOAgentError) as caught:
                session.invoke("Hi", timeout=2)
            return time.monotonic() - started, caught.value

        with ExitStack() as servers, ThreadPoolExecutor(6) as pool:
            turns = []
            for name, context in itertools.product(scripts, (None, tls[0])):
                server = FaultServer(_agent(scripts[name]), tls=context)
                servers.enter_context(server)
                with _edge_at(platform, server.url):
                    session = client.create_session("tpl1")
                turns.append((name, pool.submit(over, session)))
            for name, turn in turns:
                elapsed, error = turn.result()
                assert elapsed < 2.1 * SLOW, name
                if name == "is busy":  # until no further pause fits in
                    assert type(error) is ServiceUnavailableError
                else:
                    assert type(error) is RequestTimeoutError
                    assert elapsed >= 2.0

    def test_each_kind_of_retry_after(self, make_client: Make) -> None:
        """As long as it says; what says nothing of use counts as absent; all at once."""
        expected = {
            "seconds": (1.0, 1.2),
            "fraction": (0.5, 0.65),
            "date": (0.0, 2.3),
            "negative": (0.0, 0.6),
            "past": (0.0, 0.6),
            "unreadable": (0.0, 0.6),
        }

        def waited(value: str) -> tuple[float, int]:
            script = in_turn(busy(value), reply(200, b"[]"))
            with FaultServer(script) as server:
                client = make_client(base_url=server.url, max_retries=1)
                started = time.monotonic()
                assert client.list_templates() == []
                return time.monotonic() - started, len(server.requests)

        kinds = retry_after_kinds()
        with ThreadPoolExecutor(len(expected)) as pool:
            turns = {kind: pool.submit(waited, kinds[kind]) for kind in expected}
        for kind, turn in turns.items():
            least, most = expected[kind]
            elapsed, requests = turn.result()
            assert least <= elapsed < most * SLOW, kind
            assert requests == 2, kind

    def test_a_retry_after_too_long_to_wait_for(self, make_client: Make) -> None:
        """Is on the error, at once."""
        with FaultServer(busy("9999")) as server:
            started = time.monotonic()
            with pytest.raises(ServiceUnavailableError) as caught:
                make_client(base_url=server.url, max_retries=3).list_templates()
            assert time.monotonic() - started < 0.3 * SLOW
            assert caught.value.retry_after == 9999
            assert len(server.requests) == 1


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

    @pytest.mark.parametrize("begun", [False, True])
    def test_a_sandbox_that_ends_under_its_call(
        self, make_client: Make, platform: FakePlatform, begun: bool
    ) -> None:
        """The agent may have run, so no call goes to another sandbox by itself."""
        client = make_client(max_retries=3)

        def end(exchange: Exchange) -> None:
            sandbox = exchange.sandbox
            assert sandbox is not None
            if sandbox.state == "killed":
                return
            sandbox.state = "killed"
            platform.killed.append(sandbox.sandbox_id)
            if begun:
                exchange.start_stream(content_type="application/json")
            exchange.cut()

        with platform.overriding("POST", "/inv", end):
            with pytest.raises(SessionNotFoundError) as caught:
                client.invoke_agent("tpl1", "Hi", session_id="s")
            plan = client.invoke_many("tpl1", ["Hi"], return_exceptions=True)
            (item,) = plan.results()

        assert caught.value.code == "session_lost"
        assert isinstance(item, SessionNotFoundError)
        assert len(platform.sandboxes) == 2
        assert client.invoke_agent("tpl1", "Hi", session_id="s").sandbox_id == "sb3"

    def test_a_closed_session_is_no_reason_to_run_twice(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """Though its sandbox is known to be gone: the call was in it."""
        client = make_client()
        client.invoke_agent("tpl1", "Hi", session_id="s")
        (session,) = client._run.core.book.sessions()
        reached, release = threading.Event(), threading.Event()
        hang = lambda _: (reached.set(), release.wait(5))  # noqa: E731 - it is short
        with platform.overriding("POST", "/inv", hang):
            future = client.submit("tpl1", "Hi", session_id="s")
            assert reached.wait(5)
            platform.killed.append("sb1")
            session.get_status()
            session.close()
            error = future.exception(5)
            release.set()

        assert isinstance(error, SessionClosedError)
        assert list(platform.sandboxes) == ["sb1"]

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

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (200, InvocationError),
            (500, InvocationError),
            (503, ServiceUnavailableError),
        ],
    )
    def test_a_failure_without_a_result_is_no_success(
        self,
        make_client: Make,
        platform: FakePlatform,
        status: int,
        expected: type[PPIOAgentError],
    ) -> None:
        """Whatever status it comes with; a gateway's own words are not the agent's."""
        failed = {"status": "error", "error": "agent bad"}
        platform.on("POST", "/inv", lambda e: e.reply(status, failed))
        session = make_client(max_retries=0).create_session("tpl1")
        with pytest.raises(expected, match="agent bad") as caught:
            session.invoke("Hi")

        assert type(caught.value) is expected


def _twins(error: PPIOAgentError) -> list[PPIOAgentError]:
    return [pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)]


_HTML = {"Content-Type": "text/html"}
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_GZIPPED = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
FAULTS: dict[str, tuple[Script, type[PPIOAgentError]]] = {
    "reset": (reset(), NetworkError),
    "reset in the head": (reset(b"HTTP/1.1 200"), NetworkError),
    "closed": (cut(), NetworkError),
    "cut in the body": (cut(answer(200, b"[]" * 50)[:-9]), NetworkError),
    "no http": (cut(b"220 ready\r\n\r\n"), ProtocolError),
    "bad chunks": (cut(_CHUNKED + b"zz\r\n[]\r\n"), ProtocolError),
    "cut chunks": (cut(_CHUNKED + b"9\r\n[]"), NetworkError),
    "bad gzip": (reply(200, b"no gzip", _GZIPPED), ProtocolError),
    "cut gzip": (reply(200, gzip.compress(b"[]" * 99)[:-9], _GZIPPED), ProtocolError),
    "html": (reply(200, b"<html>", _HTML), ProtocolError),
    "another shape": (reply(200, b'{"no": "templates"}'), ProtocolError),
    "empty 401": (reply(401), AuthenticationError),
    "403": (reply(403), PermissionDeniedError),
    "404": (reply(404), NotFoundError),
    "json without code": (reply(400, b'{"message": "no"}'), ValidationError),
    "429": (reply(429), RateLimitError),
    "402": (reply(402), QuotaExceededError),
    "500": (reply(500, b"oops"), InternalServerError),
    "html 502": (reply(502, b"<html>bad gateway", _HTML), ServiceUnavailableError),
}


ERRORS = [
    cls
    for name in exceptions.__all__
    if isinstance(cls := getattr(exceptions, name), type)
    and issubclass(cls, PPIOAgentError)
]


class TestClasses:
    def _fails(self, client: AgentRuntimeClient) -> PPIOAgentError:
        """Return the error of a call, once it is known to be one of ours and whole."""
        with pytest.raises(PPIOAgentRuntimeError) as caught:
            client.list_templates()
        error = caught.value
        assert error.request_id
        for twin in _twins(error):
            assert type(twin) is type(error)
            assert str(twin) == str(error)
            assert twin.__dict__ == error.__dict__
        return error

    @pytest.mark.parametrize("fault", FAULTS)
    def test_each_fault_is_one_class(self, make_client: Make, fault: str) -> None:
        """Typed, located, with its cause, and the same after pickle and copy."""
        script, expected = FAULTS[fault]
        with FaultServer(script) as server:
            error = self._fails(make_client(base_url=server.url))
        assert type(error) is expected
        if fault != "another shape":  # nothing foreign failed
            assert error.__cause__ is not None
        assert error.attempts <= 1

    def test_an_agent_app_is_no_platform(self, make_client: Make) -> None:
        """The error says so, and no template is said not to exist."""
        with FaultServer(reply(404, b'{"code": "not_found"}')) as server:
            client = make_client(base_url=server.url)
            for call in (client.get_template, client.template_exists):
                with pytest.raises(NotFoundError, match=r"no platform at .*agent app"):
                    call("my-agent")

    def test_earlier_failures_travel_with_an_error(self, make_client: Make) -> None:
        """What was tried, how it failed and what was waited."""
        with FaultServer(in_turn(reset(), busy("0.01"), reply(503))) as server:
            error = self._fails(make_client(base_url=server.url, max_retries=2))
        assert error.attempts == 3
        assert [(past.error, past.status) for past in error.history] == [
            (NetworkError, None),
            (ServiceUnavailableError, 503),
        ]
        assert all(past.delay >= 0 for past in error.history)

    def test_a_certificate_that_is_not_trusted(
        self, make_client: Make, tls: Tls
    ) -> None:
        """And one of another name: nothing is sent, nothing tried again."""
        with FaultServer(reply(), tls=tls[0]) as server:
            for url, bundle in (
                (server.url, None),
                (server.url.replace("localhost", "127.0.0.1"), str(tls[1])),
            ):
                client = make_client(base_url=url, ca_bundle=bundle, max_retries=3)
                error = self._fails(client)
                assert type(error) is NetworkError
                assert isinstance(error.__cause__, ssl.SSLError)
                assert error.attempts == 1
            assert server.requests == []

    def test_a_peer_that_speaks_no_tls(self, make_client: Make) -> None:
        """As where http was meant."""
        with FaultServer(reply()) as server:
            error = self._fails(
                make_client(base_url=server.url.replace("http", "https"))
            )
        assert isinstance(error, NetworkError)
        assert error.__cause__ is not None

    @pytest.mark.parametrize("kind", ["refused", "refuses", "garbles"])
    def test_a_proxy_that_is_of_no_use(self, make_client: Make, kind: str) -> None:
        """It does not listen, does not let through, or is none."""
        scripts = {"refuses": reply(403), "garbles": cut(b"220 ready\r\n\r\n")}
        with FaultServer(scripts.get(kind, silence)) as server:
            if kind == "refused":
                server.close()
            proxy = server.url
            client = make_client(base_url="https://api.sandbox.test", proxy=proxy)
            error = self._fails(client)
        assert isinstance(error, NetworkError)
        assert error.__cause__ is not None

    @pytest.mark.parametrize("cls", ERRORS)
    def test_every_attribute_survives_a_journey(
        self, cls: type[PPIOAgentError]
    ) -> None:
        """Those that a class declares, and the failures before."""
        declared = {
            name: f"{name} of it"
            for base in cls.__mro__
            if issubclass(base, PPIOAgentError)
            for name in vars(base).get("__annotations__", {})
        }
        error = cls("what failed")
        vars(error).update(declared)
        error.attempts = 2
        error.history = (PastFailure(NetworkError, None, 0.5),)
        for twin in _twins(error):
            assert type(twin) is cls
            assert (twin.args, twin.__dict__) == (error.args, error.__dict__)
            assert str(twin) == str(error)

    def test_a_created_sandbox_without_an_id(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The path in the answer is told, the answer itself is not."""
        platform.on("POST", "/sandboxes$", lambda e: e.reply(201, {"templateID": "t"}))
        with pytest.raises(ProtocolError, match=r"\$\.sandboxID: is missing"):
            client.create_session("tpl1")

    @pytest.mark.parametrize(
        "record",
        [
            {"sandboxID": "sb1\r\nERROR all is lost", "templateID": "t"},
            {"sandboxID": "", "templateID": "t"},
            {"sandboxID": "sb é", "templateID": "t"},
            {"sandboxID": "sb1", "clientID": "a b", "templateID": "t"},
        ],
    )
    def test_a_sandbox_with_an_id_that_is_none(
        self, client: AgentRuntimeClient, platform: FakePlatform, record: object
    ) -> None:
        """It is neither used nor repeated."""
        platform.on("POST", "/sandboxes$", lambda e: e.reply(201, record))
        with pytest.raises(ProtocolError, match="visible ASCII") as caught:
            client.create_session("tpl1")
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("status", [200, 400, 500])
    def test_what_a_peer_says_stays_in_its_line(
        self, client: AgentRuntimeClient, platform: FakePlatform, status: int
    ) -> None:
        """Control characters are written out; an agent's own lines stay lines."""
        failed = {"result": 1, "status": "error", "error": "a\n\x1b[2J\r\0b"}
        platform.on("POST", "/inv", lambda e: e.reply(status, failed))
        with pytest.raises(PPIOAgentError) as caught:
            client.invoke_agent("tpl1", "Hi")
        line = "a \\x1b[2J \\x00b" if status == 400 else "a\n\\x1b[2J\\r\\x00b"
        assert caught.value.message.endswith(line)

    def test_nobody_answers(self, make_client: Make) -> None:
        """Refused and unknown hosts are network errors with their cause."""
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))  # ours, and nobody listens on it
            refused = f"http://127.0.0.1:{silent.getsockname()[1]}"
            for url in (refused, "https://nowhere.invalid"):
                with pytest.raises(NetworkError) as caught:
                    make_client(base_url=url).list_templates()

                assert caught.value.__cause__ is not None


class Witness:
    """A plug-in that keeps all it is told of the client's calls."""

    def __init__(self) -> None:
        self.told: list[object] = []

    @hookimpl
    def ppio_client_request(self, record: object) -> None:
        self.told.append(record)

    @hookimpl
    def ppio_client_response(self, record: object) -> None:
        self.told.append(record)

    @hookimpl
    def ppio_client_retry(self, record: object) -> None:
        self.told.append(record)

    @hookimpl
    def ppio_client_session_changed(self, record: object) -> None:
        self.told.append(record)


def _tell_all(platform: FakePlatform, secrets: Iterable[str]) -> Script:
    """Be proxy, platform and agent in one; the agent tells what it was sent."""

    def script(peer: Peer, request: Received) -> None:
        path = urlsplit(request.target).path
        sandbox = platform.sandbox_body(FakeSandbox("sb1", "tpl1", {}))
        if path == "/invocations":
            told = f"{' '.join(secrets[:2])} {request.headers.get('authorization')}"
            prompt = request.json()["prompt"]
            if prompt != "well":
                told += f" {request.headers.get('e2b-traffic-access-token')}"
            record = {"error": told, "code": told, "error_type": told}
            if prompt == "stream":
                event = f"event: error\ndata: {json.dumps(record)}\n\n"
                kind = {"Content-Type": "text/event-stream", "X-Invocation-Id": "i"}
                reply(200, event.encode(), kind)(peer, request)
                return
            if prompt == "well":
                answers = 200, {"result": told}
            elif prompt == "envelope":
                answers = 500, {**record, "result": None, "status": "error"}
            else:
                answers = 503, {"code": "word", "message": told, "retryable": True}
        elif path == "/sandboxes":
            answers = 201, {**sandbox, "edgeURL": "http://127.0.0.1:1"}
        elif path == "/ping":
            answers = 200, {"status": "Healthy"}
        else:
            answers = 200, [template_record()]
        status, body = answers
        headers = {"Content-Type": "application/json", "X-Echo": " ".join(secrets)}
        reply(status, json.dumps(body).encode(), headers)(peer, request)

    return script


def test_secrets_stay_secret(
    platform: FakePlatform, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """They are in no log, repr, error, its pickle, hook record or journal."""
    secrets = ("sk-SECRET123", "hunter2-of-the-proxy", "traffic-token-4")
    platform.traffic_token = secrets[2]
    witness = Witness()
    with FaultServer(_tell_all(platform, secrets)) as server:
        config = ClientConfig(
            base_url="http://127.0.0.1:1",
            proxy=f"http://me:{secrets[1]}@127.0.0.1:{server.port}",
            max_retries=1,
            forward_api_key=True,
        )
        client = AgentRuntimeClient(secrets[0], config=config, plugins=[witness])
        with caplog.at_level(logging.DEBUG), client:
            shown = [repr(client), repr(client.auth), repr(config)]
            shown.append(repr(config.explain()))
            session = client.create_session("tpl1")
            shown.append(repr(session))
            with pytest.raises(ServiceUnavailableError) as caught:
                session.invoke("Hi", idempotency_key="k-1")
            for prompt in ("envelope", "stream"):
                with pytest.raises(InvocationError, match=r"Bearer \*\*\* ") as told:
                    session.invoke(prompt)
                shown += [str(told.value), pickle.dumps(told.value).decode("latin-1")]
            journal = tmp_path / "journal"
            with client.invoke_many(
                "tpl1", ["Hi", "well"], journal=journal, return_exceptions=True
            ) as batch:
                failed, well = batch
    assert secrets[0] in str(well.response)  # it is the caller's own
    shown += [repr(failed), str(failed.error), journal.read_text()]
    sent = server.requests[-2].headers
    assert sent["proxy-authorization"].startswith("Basic ")
    assert any(
        secrets[0] in r.headers.get("authorization", "") for r in server.requests
    )
    error = caught.value
    assert "*** *** Bearer *** ***" in str(error)  # what the agent told
    for twin in (error, *_twins(error)):
        shown += [str(twin), repr(twin), repr(twin.__dict__), repr(twin.__cause__)]
    shown += [pickle.dumps(error).decode("latin-1"), caplog.text]
    assert len(witness.told) > 8
    shown += map(repr, witness.told)
    for text, secret in itertools.product(shown, secrets):
        assert secret not in text


def _closing(platform: FakePlatform) -> Callable[[Exchange], None]:
    """Create as usual, then close, so that the next request has a fresh connection."""

    def answer(exchange: Exchange) -> None:
        platform.create(exchange)
        exchange.cut()

    return answer
