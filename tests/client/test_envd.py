"""Starting an agent through its sandbox's controller: what is sent, read and meant."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.client import AgentRuntimeClient
from ppio_agent.client.envd import (
    Ended,
    Failed,
    Output,
    Started,
    envd_tokens,
    parse_event,
    start_message,
)
from ppio_agent.exceptions import (
    AuthenticationError,
    ClientClosedError,
    NetworkError,
    PPIOAgentError,
    ProtocolError,
    RateLimitError,
    SandboxCreationError,
    WireError,
)
from ppio_agent.wire.connect import (
    STREAM_CONTENT_TYPE,
    Frame,
    FrameReader,
    encode_frame,
)
from tests.support import SLOW, new_threads
from tests.support_platform import Exchange, FakePlatform, envd_event, template_record

START = {"start": {"pid": 7}}
END = {"end": {"exitCode": 1, "exited": True, "status": "exit status 1"}}


def _data(data: bytes, stream: str = "stdout") -> dict[str, Any]:
    return {"data": {stream: base64.b64encode(data).decode()}}


_EVENTS = st.lists(
    st.one_of(
        st.just(START),
        st.just(END),
        st.just({"keepalive": {}}),
        st.binary(max_size=200).map(_data),
        st.just({"later": {"version": 9}}),
    ),
    max_size=8,
)


def _end(error: dict[str, str] | None = None) -> bytes:
    body = {} if error is None else {"error": error}
    return encode_frame(json.dumps(body).encode(), end=True)


class TestMessage:
    def test_is_one_frame_with_exactly_this(self) -> None:
        """The command of the field, its input closed, nothing else."""
        (frame,) = FrameReader().feed(start_message("src/app.py", {}))

        assert frame.end is False
        assert json.loads(frame.payload) == {
            "process": {
                "cmd": "/bin/bash",
                "args": ["-l", "-c", "cd /app && sudo -E python src/app.py"],
            },
            "stdin": False,
        }

    def test_variables_of_the_template(self) -> None:
        """They are there only if there are some."""
        (frame,) = FrameReader().feed(start_message("app.py", {"A": "1"}))

        assert json.loads(frame.payload)["process"]["envs"] == {"A": "1"}

    @pytest.mark.parametrize(
        ("version", "user"),
        [("0.3.9", True), ("0.4.0", False), ("0.5.7", False), ("0.3", True),
         ("1.0", False), ("0.4", False), ("dev", False), ("", False)],
    )  # fmt: skip
    def test_old_controllers_want_a_user(self, version: str, *, user: bool) -> None:
        """Before 0.4.0; whatever else it may be is taken for new."""
        tokens = envd_tokens(access_token="t", version=version)

        expected = {"X-Access-Token": "t"}
        if user:
            basic = base64.b64encode(b"user:").decode()
            expected["Authorization"] = f"Basic {basic}"
        assert tokens == expected
        assert "X-Access-Token" not in envd_tokens(access_token=None, version=version)


class TestEvents:
    @pytest.mark.parametrize(
        ("event", "expected"),
        [
            (START, Started()),
            (_data(b"a\xff"), Output(b"a\xff")),
            (_data(b"oops", "stderr"), Output(b"oops")),
            ({"data": {}}, Output(b"")),
            (END, Ended(1, "exit status 1")),
            ({"end": {"exited": True}}, Ended(0, "exit status 0")),
            ({"end": {"exitCode": -1, "status": "signal: killed"}},
             Ended(-1, "signal: killed")),
            ({"keepalive": {}}, None),
            ({"later": 1}, None),
        ],
    )  # fmt: skip
    def test_are_read(self, event: dict[str, Any], expected: object) -> None:
        """A sign of life, and what later versions add, say nothing."""
        assert parse_event(Frame(json.dumps({"event": event}).encode())) == expected

    def test_last_frames(self) -> None:
        """Shorter than a frame's head, or with the failure of the call."""
        error = {"error": {"code": "unavailable", "message": "no"}}

        assert parse_event(Frame(b"{}", end=True)) is None
        failed = parse_event(Frame(json.dumps(error).encode(), end=True))
        assert failed == Failed("unavailable", "no")

    @pytest.mark.parametrize(
        "payload",
        [b"", b"[]", b"{}", b'{"event": 1}', b'{"event": {"end": 3}}', b"\xff",
         b'{"event": {"end": {"exitCode": "1"}}}', b'{"event": {"data": {"stdout": 1}}}',
         b'{"event": {"data": {"stdout": "a"}}}'],
    )  # fmt: skip
    def test_what_is_no_event_is_a_wire_error(self, payload: bytes) -> None:
        """Never another exception."""
        with pytest.raises(WireError):
            parse_event(Frame(payload))

    @given(_EVENTS, st.lists(st.integers(1, 40), min_size=1, max_size=20))
    def test_cuts_change_nothing(
        self, events: list[dict[str, Any]], sizes: list[int]
    ) -> None:
        """Frames may arrive in any pieces."""
        wire = b"".join(map(envd_event, events)) + _end()
        whole = [parse_event(f) for f in FrameReader().feed(wire)]
        reader, pieces, at = FrameReader(), [], 0
        while at < len(wire):
            size = sizes[len(pieces) % len(sizes)]
            pieces.append([parse_event(f) for f in reader.feed(wire[at : at + size])])
            at += size

        assert [event for piece in pieces for event in piece] == whole

    @given(st.binary(max_size=200))
    def test_no_bytes_make_another_error(self, payload: bytes) -> None:
        """Whatever a peer sends."""
        try:
            parse_event(Frame(payload))
        except WireError:
            return


@pytest.fixture
def unready(platform: FakePlatform) -> FakePlatform:
    """A platform whose agents are not ready until they were started."""
    platform.on("GET", "/ping", lambda e: e.reply(503, {"message": "nobody"}))
    return platform


def _script(*pieces: bytes, hold: bool = False) -> Callable[[Exchange], None]:
    def envd(exchange: Exchange) -> None:
        exchange.start_stream(content_type=STREAM_CONTENT_TYPE)
        for piece in pieces:
            exchange.send(piece)
        if hold:
            exchange.await_client_gone()
        else:
            exchange.end_stream()

    return envd


def _failure(client: AgentRuntimeClient, **options: Any) -> PPIOAgentError:
    with pytest.raises(PPIOAgentError) as caught:
        client.create_session("tpl1", **options)
    return caught.value


class TestStart:
    def test_an_agent_is_started_and_waited_for(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Once, after the first ping; the stream is closed when it is ready."""
        gone, started = threading.Event(), threading.Event()

        def envd(exchange: Exchange) -> None:
            started.set()
            _script(envd_event(START), hold=True)(exchange)
            gone.set()

        platform.envd = envd
        platform.on(
            "GET",
            "/ping",
            lambda e: None if started.is_set() else e.reply(503, {"message": "no"}),
        )
        threads = new_threads("ppio-client-start")
        session = client.create_session("tpl1")

        assert gone.wait(5)
        assert threads() == []
        assert session.invoke("Hi").status == "success"
        assert len(platform.seen("POST", "/process.Process/Start")) == 1

    def test_an_agent_that_is_up_is_not_started(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Its template did that."""
        client.create_session("tpl1")

        assert platform.seen("POST", "/process.Process/Start") == []

    @pytest.mark.parametrize("metadata", [{}, {"agent_runtime": "{}"}])
    def test_without_an_entrypoint_it_is_only_waited(
        self,
        client: AgentRuntimeClient,
        unready: FakePlatform,
        metadata: dict[str, str],
    ) -> None:
        """Nothing says what to start."""
        unready.templates = [template_record(metadata=metadata)]
        error = _failure(client, start_timeout=0.2)

        assert isinstance(error, SandboxCreationError)
        assert error.stage == "ready"
        assert unready.seen("POST", "/process.Process/Start") == []

    def test_variables_of_the_caller_win(
        self, client: AgentRuntimeClient, unready: FakePlatform
    ) -> None:
        """They hold for all of the sandbox; the template's fill the gaps."""
        document = {
            "spec": {"entrypoint": "app.py", "envVars": {"A": "of template", "B": "b"}}
        }
        metadata = {"agent_runtime": json.dumps(document)}
        unready.templates = [template_record(metadata=metadata)]
        _failure(client, start_timeout=0.2, env_vars={"A": "of caller"})

        (request,) = unready.seen("POST", "/process.Process/Start")
        (frame,) = FrameReader().feed(request.body)
        assert json.loads(frame.payload)["process"]["envs"] == {"B": "b"}

    def test_an_early_end_fails_with_its_output(
        self, client: AgentRuntimeClient, unready: FakePlatform
    ) -> None:
        """Within 2 s, cut anywhere, exit status and last line told, nothing left."""
        wire = b"".join([
            envd_event(START),
            envd_event(_data(b"x" * 8000 + b"\nTraceback\n")),
            envd_event(_data("No module 'numpyß'\n".encode(), "stderr")),
            envd_event(END),
            _end(),
        ])  # fmt: skip
        pieces = [wire[at : at + 1000] for at in range(0, len(wire), 1000)]
        unready.envd = _script(*pieces[:-1], *(bytes([b]) for b in pieces[-1]))
        started = time.monotonic()
        error = _failure(client)

        assert time.monotonic() - started < 2 * SLOW
        assert isinstance(error, SandboxCreationError)
        assert (error.stage, error.exit_code) == ("start", 1)
        assert error.log_tail.endswith("Traceback\nNo module 'numpyß'\n")
        assert len(error.log_tail.encode()) <= 4096
        assert "numpyß" in str(error)
        assert "exit status 1" in str(error)
        assert unready.alive == []

    def test_an_early_end_may_mean_that_it_was_up_already(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The template's own agent has the port, and is soon ready."""
        ended: list[float] = []

        def envd(exchange: Exchange) -> None:
            _script(envd_event(START), envd_event(END), _end())(exchange)
            ended.append(time.monotonic())

        def ping(exchange: Exchange) -> None:
            if not ended or time.monotonic() - ended[0] < 0.3:
                exchange.reply(503, {"message": "no"})

        platform.envd = envd
        platform.on("GET", "/ping", ping)

        assert client.create_session("tpl1").invoke("Hi").status == "success"

    def test_a_stream_that_is_cut_says_nothing(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The agent lives on, and the pings tell how it is."""
        pings: list[None] = []

        def envd(exchange: Exchange) -> None:
            exchange.start_stream(content_type=STREAM_CONTENT_TYPE)
            exchange.send(envd_event(START)[:-1])
            exchange.send(envd_event(START)[-1:] + b"\0\0")
            exchange.cut()

        def ping(exchange: Exchange) -> None:
            pings.append(None)
            if len(pings) < 5:
                exchange.reply(503, {"message": "no"})

        platform.envd = envd
        platform.on("GET", "/ping", ping)

        client.create_session("tpl1")
        assert len(pings) == 5

    @pytest.mark.parametrize(
        ("wire", "expected", "words"),
        [
            (b"", NetworkError, "closed the connection"),
            (envd_event(END), ProtocolError, "did not begin"),
            (b"\x01" + envd_event(START)[1:], ProtocolError, "compressed"),
            (encode_frame(b"[]"), ProtocolError, "cannot be read"),
            (_end({"code": "unauthenticated", "message": "who?"}),
             AuthenticationError, "who"),
            (_end({"code": "resource_exhausted", "message": "full"}),
             RateLimitError, "full"),
            (_end({"code": "unavailable", "message": "later"}), NetworkError, "later"),
            (_end({"code": "not_found", "message": "no bash"}),
             SandboxCreationError, "no bash"),
        ],
    )  # fmt: skip
    def test_a_start_that_fails(
        self,
        client: AgentRuntimeClient,
        unready: FakePlatform,
        wire: bytes,
        expected: type[PPIOAgentError],
        words: str,
    ) -> None:
        """By the Connect code of the last frame, and at once."""
        unready.envd = _script(*([wire] if wire else []))
        error = _failure(client)

        assert type(error) is expected
        assert words in str(error)
        assert "sb1" in str(error)
        assert unready.alive == []

    def test_a_compressed_frame_later_on(
        self, client: AgentRuntimeClient, unready: FakePlatform
    ) -> None:
        """It cannot be read either."""
        unready.envd = _script(
            envd_event(START), b"\x01" + envd_event(END)[1:], hold=True
        )

        assert isinstance(_failure(client), ProtocolError)

    @pytest.mark.parametrize(
        ("status", "body", "expected"),
        [
            (401, {"code": "unauthenticated", "message": "m"}, AuthenticationError),
            (401, {"code": 401, "message": "unauthorized access"}, AuthenticationError),
            (429, {"code": "resource_exhausted", "message": "m"}, RateLimitError),
            (503, {"code": "unavailable", "message": "m"}, NetworkError),
            (404, {"code": "not_found", "message": "m"}, SandboxCreationError),
            (500, {"code": "internal", "message": "m"}, SandboxCreationError),
            (400, {"oops": 1}, SandboxCreationError),
            (200, {"not": "a stream"}, ProtocolError),
        ],
    )
    def test_a_controller_that_refuses(
        self,
        client: AgentRuntimeClient,
        unready: FakePlatform,
        status: int,
        body: dict[str, Any],
        expected: type[PPIOAgentError],
    ) -> None:
        """The Connect code counts, where there is one."""
        unready.envd = lambda e: e.reply(status, body)
        error = _failure(client)

        assert type(error) is expected
        if isinstance(error, SandboxCreationError):
            assert error.stage == "start"
        assert unready.alive == []

    def test_an_edge_that_lags_behind_is_asked_again(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """It says that nothing was started."""
        edge = {"sandboxId": "sb1", "message": "The sandbox was not found"}
        answers = iter([
            (502, edge), (502, {**edge, "port": 49983}), (409, edge), (503, edge),
        ])  # fmt: skip
        started = threading.Event()

        def envd(exchange: Exchange) -> None:
            answer = next(answers, None)
            if answer is not None:
                exchange.reply(*answer)
                return
            started.set()
            _script(envd_event(START), hold=True)(exchange)

        platform.envd = envd
        platform.on(
            "GET",
            "/ping",
            lambda e: None if started.is_set() else e.reply(502, edge),
        )

        client.create_session("tpl1")
        assert started.is_set()

    def test_the_token_is_not_told(
        self, client: AgentRuntimeClient, unready: FakePlatform
    ) -> None:
        """Not even if the controller repeats it."""

        def envd(exchange: Exchange) -> None:
            token = exchange.request.headers["x-access-token"]
            exchange.reply(400, {"code": "invalid_argument", "message": f"bad {token}"})

        unready.envd = envd

        assert "envd-token" not in str(_failure(client))

    def test_closing_the_client_ends_the_watching(
        self, client: AgentRuntimeClient, unready: FakePlatform
    ) -> None:
        """At once, and with its sandbox."""
        started = threading.Event()

        def envd(exchange: Exchange) -> None:
            started.set()
            _script(envd_event(START), hold=True)(exchange)

        unready.envd = envd
        caught: list[PPIOAgentError] = []
        creator = threading.Thread(target=lambda: caught.append(_failure(client)))
        creator.start()
        assert started.wait(5)
        client.close()
        creator.join(5)

        assert [type(error) for error in caught] == [ClientClosedError]
        assert unready.alive == []
