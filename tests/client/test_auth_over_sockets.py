"""Signed calls against served agents that believe nobody: directly, and in sandboxes."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import pytest

from ppio_agent import HmacAuth, PPIOAgentRuntimeApp
from ppio_agent._util.clock import Deadline
from ppio_agent.client import AgentRuntimeClient, AuthManager, ClientConfig
from ppio_agent.client.agent_port import AgentPort
from ppio_agent.client.auth import attempt_auth
from ppio_agent.client.envd import Envd, envd_tokens
from ppio_agent.client.runner import Runner
from ppio_agent.exceptions import AuthenticationError
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from ppio_agent.testing import FaultServer, ServedAgent, reply
from ppio_agent.transport import Request, Transport
from tests.client.support_streams import CuttingRelay, call_of, open_port, stream_of
from tests.support import SLOW, wait_until, write_agent

KEY = "sk-0123456789-abcdef"
SECRET = "sk_shared_by_two_sides_only"

AGENT = f"""
import os
from ppio_agent import HmacAuth, PPIOAgentRuntimeApp

app = PPIOAgentRuntimeApp(auth=HmacAuth({{"team-a": "{SECRET}"}}))


@app.entrypoint
def agent(request, context):
    if "words" in request:
        return iter(request["words"])
    return [context.principal.id, sorted(context.headers)]


app.run()
"""

Change = Callable[[Request], Request]


def _keys(**more: Any) -> AuthManager:
    return AuthManager(KEY, SECRET, key_id="team-a", environ={}, **more)


class Counting:
    """An agent that notes its runs."""

    def __init__(self) -> None:
        self.prompts: list[str | None] = []
        self.over = threading.Event()

    def run(self, request: Mapping[str, Any], context: Any) -> Any:
        self.prompts.append(request.get("prompt"))
        if "words" in request:
            return self._stream(request["words"])
        return context.principal.id

    def _stream(self, words: list[str]) -> Iterator[str]:
        for word in words:
            if word == "silence":
                self.over.wait(20)
            yield word


@pytest.fixture(scope="module")
def agent() -> Iterator[ServedAgent]:
    app = PPIOAgentRuntimeApp(auth=HmacAuth({"team-a": SECRET}))
    counting = Counting()
    app.entrypoint(counting.run)
    with ServedAgent(app) as served:
        served.counting = counting  # type: ignore[attr-defined]
        yield served
        counting.over.set()


@contextmanager
def _signing(url: str, auth: AuthManager | None = None) -> Iterator[AgentPort]:
    with open_port(url) as port:
        yield attrs.evolve(port, auth=attempt_auth(auth or _keys()))


class TestServedAgent:
    def test_everything_that_an_agent_is_asked_is_signed(
        self, agent: ServedAgent
    ) -> None:
        """A call, a stream, its cancelling; nothing else is needed to be admitted."""
        with _signing(agent.url) as port:
            answer = port.invoke(call_of())
            chunks = list(stream_of(port, body=b'{"words":["a","b"]}'))
            stream = stream_of(port, body=b'{"words":["a","silence"]}')
            first = next(stream)
            cancelled = stream.cancel()
            stream.close()

        assert answer.result == "team-a"
        assert chunks == ["a", "b"]
        assert first == "a"
        assert cancelled.state != "unknown"

    def test_an_unsigned_call_is_refused(self, agent: ServedAgent) -> None:
        """So the others were admitted for their signatures."""
        with open_port(agent.url) as port, pytest.raises(AuthenticationError):
            port.invoke(call_of())

    @pytest.mark.parametrize(
        "change",
        [
            lambda r: attrs.evolve(r, body=r.body[:-1] + b" "),
            lambda r: attrs.evolve(r, url=r.url.replace("invocations", "invocationz")),
            lambda r: attrs.evolve(r, url=f"{r.url}?x=1"),
            lambda r: attrs.evolve(r, method="PUT"),
        ],
        ids=["body", "path", "query", "method"],
    )
    def test_a_changed_byte_is_refused(
        self, agent: ServedAgent, change: Change
    ) -> None:
        """What is signed is not what is sent then."""
        keys = _keys()
        with _signing(agent.url) as port:
            other = attrs.evolve(
                port, auth=lambda request, _refresh: keys.headers(change(request))
            )
            with pytest.raises(AuthenticationError, match="signature"):
                other.invoke(call_of())

    def test_a_nonce_serves_once(self, agent: ServedAgent) -> None:
        """Whoever saw a request cannot send it again."""
        kept: list[Mapping[str, str]] = []
        keys = _keys()

        def replayed(request: Request, _refresh: bool) -> Mapping[str, str]:
            kept[:] = kept or [keys.headers(request)]
            return kept[0]

        with open_port(agent.url) as port:
            replaying = attrs.evolve(port, auth=replayed)
            replaying.invoke(call_of())
            with pytest.raises(AuthenticationError, match="nonce"):
                replaying.invoke(call_of())

    @pytest.mark.parametrize("off", [400, -400])
    def test_a_clock_that_is_wrong_is_refused(
        self, agent: ServedAgent, off: float
    ) -> None:
        """A signature is good for 300 s before and after."""
        wrong = _keys(clock=lambda: time.time() + off)
        with (
            _signing(agent.url, wrong) as port,
            pytest.raises(AuthenticationError, match="clock"),
        ):
            port.invoke(call_of())

    def test_the_skew_is_told(self) -> None:
        """By the answer's own date, if the peer's clock is the other one."""
        date = formatdate(time.time() + 400, usegmt=True)
        with (
            FaultServer(reply(401, b"", {"Date": date})) as server,
            _signing(server.url) as port,
            pytest.raises(AuthenticationError, match=r"clock .* (399|400) s behind"),
        ):
            port.invoke(call_of())

    def test_eight_threads_and_no_secret_on_the_wire(self, agent: ServedAgent) -> None:
        """Every nonce is new; neither the secret nor the platform's key is sent."""
        with (
            CuttingRelay(urlsplit(agent.url).port or 0) as relay,
            _signing(relay.url) as port,
            ThreadPoolExecutor(8) as pool,
        ):
            found = list(pool.map(lambda _: port.invoke(call_of()).result, range(80)))
            sent = bytes(relay.sent)

        nonces = re.findall(rb"(?i)x-ppio-nonce: (\S+)", sent)
        assert found == ["team-a"] * 80
        assert len(set(nonces)) == len(nonces) == 80
        assert SECRET.encode() not in sent
        assert KEY.encode() not in sent

    def test_what_is_sent_again_is_signed_again(self, agent: ServedAgent) -> None:
        """After a cut: another nonce, the same key, one run."""
        counting: Counting = agent.counting  # type: ignore[attr-defined]
        with (
            CuttingRelay(urlsplit(agent.url).port or 0) as relay,
            _signing(relay.url) as port,
        ):
            port.ping(Deadline.after(5 * SLOW))  # by which the peer is known
            relay.cut_next(b"")
            answer = port.invoke(call_of(key="k-1", body=b'{"prompt":"once"}'))
            sent = bytes(relay.sent)

        assert answer.result == "team-a"
        assert counting.prompts.count("once") == 1
        assert len(re.findall(rb"(?i)idempotency-key: k-1\r", sent)) == 2
        assert len(set(re.findall(rb"(?i)x-ppio-nonce: (\S+)", sent))) == 3

    def test_a_stream_that_was_cut_goes_on(self, agent: ServedAgent) -> None:
        """The request that resumes it is signed, too."""
        with (
            CuttingRelay(urlsplit(agent.url).port or 0, b"id: 1\n") as relay,
            _signing(relay.url) as port,
        ):
            chunks = list(stream_of(port, body=b'{"words":["a","b","c"]}'))
            sent = bytes(relay.sent)

        assert chunks == ["a", "b", "c"]
        assert b"/events" in sent


def test_a_redirect_is_signed_for_where_it_leads() -> None:
    """The target is part of the signature."""
    seen: list[str] = []
    keys = _keys()

    def auth(request: Request, _refresh: bool) -> Mapping[str, str]:
        seen.append(request.target)
        return keys.headers(request)

    moved = reply(307, b"", {"Location": "/b?c=%2F"})
    with FaultServer(
        lambda p, r: (moved if r.target == "/a" else reply(200))(p, r)
    ) as s:
        with Transport() as transport:
            request = Request(method="GET", url=f"{s.url}/a", kind="agent", auth=auth)
            transport.send(request)
        signatures = {r.headers["x-ppio-signature"] for r in s.requests}

    assert seen == ["/a", "/b?c=%2F"]
    assert len(signatures) == 2


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxPlatform]:
    folder: Path = tmp_path_factory.mktemp("platform")
    with SandboxPlatform(PlatformConfig(data_dir=folder / "data", port=0)) as platform:
        platform.deploy(write_agent(folder / "signed", AGENT, name="signed"))
        yield platform


class TestPlatform:
    """Through the edge of the local platform, into a sandbox."""

    def test_signatures_reach_the_agent(self, platform: SandboxPlatform) -> None:
        """They pass the edge as they are; the platform needs the key alone."""
        config = ClientConfig(base_url=platform.url, key_id="team-a")
        with AgentRuntimeClient(platform.api_key, SECRET, config=config) as client:
            with client.create_session("signed") as session:
                name, headers = session.invoke("Hi").result
                chunks = list(session.invoke_stream({"words": ["a", "b"]}))
            refused = AgentRuntimeClient(platform.api_key, config=config)
            with refused, pytest.raises(AuthenticationError):
                refused.invoke_agent("signed", "Hi")

        assert name == "team-a"
        assert chunks == ["a", "b"]
        assert not {"x-api-key", "authorization", "x-ppio-key"} & set(headers)

    def test_its_controller_starts_what_ours_asks_for(
        self, platform: SandboxPlatform
    ) -> None:
        """It attaches to the agent that runs, and tells how others end."""
        config = ClientConfig(base_url=platform.url, key_id="team-a")
        with (
            AgentRuntimeClient(platform.api_key, SECRET, config=config) as client,
            client.create_session("signed") as session,
        ):
            runner: Runner = client._run
            control = runner.launcher().control
            detail = control.get_sandbox(session.sandbox_id, Deadline.after(5))
            envd = Envd(
                transport=control.transport,
                route=control.endpoint.route(
                    session.sandbox_id, 49983, domain=None, edge_url=None
                ),
                auth=control.auth,
                tokens=envd_tokens(
                    access_token=detail.envd_access_token, version=detail.envd_version
                ),
                sandbox_id=session.sandbox_id,
            )
            limit = Deadline.after(10 * SLOW)
            with envd.start("app.py", {}, limit) as attached:
                assert attached.over is False
            with envd.start("missing.py", {}, limit) as failing:
                wait_until(lambda: failing.over)
                ended, told = failing.ended, failing.log_tail
            with pytest.raises(AuthenticationError, match="access token"):
                attrs.evolve(envd, tokens={}).start("app.py", {}, limit)
            still = session.invoke("Hi").result[0]

        assert ended is not None
        assert ended.exit_code == 2
        assert "missing.py" in told
        assert still == "team-a"
