"""From a template to a ready sandbox, or to none at all."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable

import pytest

from ppio_agent.client import AgentRuntimeClient
from ppio_agent.exceptions import (
    AuthenticationError,
    ClientClosedError,
    NetworkError,
    PermissionDeniedError,
    RateLimitError,
    RequestTimeoutError,
    SandboxCreationError,
    SessionNotFoundError,
)
from tests.support import SLOW, wait_until
from tests.support_platform import KEY, Exchange, FakePlatform, template_record

Make = Callable[..., AgentRuntimeClient]


class TestCreate:
    def test_body_says_what_was_asked_for(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The plain style: modern keys, marks of this client, the key as a header."""
        client.create_session(
            "alias-tpl1",
            600,
            env_vars={"LEVEL": "1"},
            metadata={"team": "search"},
            allow_internet=False,
            auto_pause=True,
        )

        sent = platform.seen("POST", "/sandboxes$")[0]
        body = sent.json()
        create_id = body["metadata"].pop("ppio_create_id")
        created_by = body["metadata"].pop("created_by")
        assert body == {
            "templateID": "tpl1",
            "timeout": 600,
            "metadata": {"team": "search"},
            "envVars": {"LEVEL": "1"},
            "allow_internet_access": False,
            "secure": True,
            "autoPause": True,
        }
        assert created_by.startswith("ppio-agent/")
        assert sent.headers["idempotency-key"] == create_id
        assert sent.headers["x-api-key"] == KEY

    def test_a_ready_agent_is_pinged_once(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """No pause, no second question."""
        client.create_session("tpl1")

        assert len(platform.seen("GET", "/ping")) == 1

    def test_a_slow_agent_is_found_soon_after_it_is_ready(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Ready after 0.3 s is seen 0.2 s later at most."""
        ready_at = time.monotonic() + 0.3

        def ping(exchange: Exchange) -> None:
            if time.monotonic() < ready_at:
                exchange.reply(503, {"message": "starting"})

        platform.on("GET", "/ping", ping)
        client.create_session("tpl1")

        assert time.monotonic() - ready_at < 0.2 * SLOW

    def test_not_yet_has_many_faces(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Unknown to the edge, port closed, changing, busy, unhealthy: all may pass."""
        edge = {"sandboxId": "sb1", "message": "m"}
        answers = iter([
            (502, edge), (502, {**edge, "port": 8080}), (409, edge), (503, edge),
            (503, {"status": "Unhealthy", "message": "warming up"}),
            (200, {"status": "HealthyBusy"}),
        ])  # fmt: skip
        platform.on("GET", "/ping", lambda e: e.reply(*next(answers)))

        client.create_session("tpl1")

        assert next(answers, None) is None

    def test_a_lost_answer_adopts_the_sandbox_that_was_made(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The platform has created it; nobody creates a second one."""
        lost = []

        def lose(exchange: Exchange) -> None:
            if not lost:
                platform.create_unanswered(exchange)
                lost.append(True)

        platform.on("POST", "/sandboxes$", lose)
        session = client.create_session("tpl1")

        assert session.sandbox_id == "sb1"
        assert platform.alive == ["sb1"]
        assert session.invoke("Hi").status == "success"

    def test_a_request_lost_before_it_arrived_is_sent_again(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """With the same key, in case it arrives after all."""
        lost = []

        def lose(exchange: Exchange) -> None:
            if not lost:
                lost.append(True)
                exchange.cut()

        platform.on("POST", "/sandboxes$", lose)
        client.create_session("tpl1")

        keys = {
            r.headers["idempotency-key"] for r in platform.seen("POST", "/sandboxes$")
        }
        assert len(keys) == 1
        assert platform.alive == ["sb1"]


class TestFailure:
    def test_a_dead_agent_fails_at_once(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Exit status and last line are told, the sandbox is killed."""

        def die(exchange: Exchange) -> None:
            sandbox = exchange.sandbox
            assert sandbox is not None
            sandbox.port_open, sandbox.exit_code = False, 1
            sandbox.log_tail = "Traceback …\nModuleNotFoundError: No module 'numpyy'\n"

        platform.on("GET", "/ping", die)
        started = time.monotonic()
        with pytest.raises(SandboxCreationError, match="numpyy") as caught:
            client.create_session("tpl1")

        assert time.monotonic() - started < 3 * SLOW
        assert caught.value.exit_code == 1
        assert caught.value.stage == "ready"
        assert caught.value.sandbox_id == "sb1"
        assert caught.value.log_tail.startswith("Traceback")
        assert platform.alive == []

    def test_an_agent_that_is_never_ready(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The time it was given is told by the argument first."""
        platform.on("GET", "/ping", lambda e: e.reply(503, {"status": "Unhealthy"}))
        started = time.monotonic()
        with pytest.raises(SandboxCreationError, match="not ready in time"):
            client.create_session("tpl1", start_timeout=0.3)

        assert time.monotonic() - started < 1 * SLOW
        assert platform.alive == []

    def test_the_deadline_bounds_it_all(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Whatever the template would allow; the agent is not said to have failed."""
        platform.on("GET", "/ping", lambda e: e.reply(503, {"status": "Unhealthy"}))
        with pytest.raises(RequestTimeoutError, match="sb1"):
            client.create_session("tpl1", deadline=0.2)
        with pytest.raises(TimeoutError):
            client.invoke_agent("tpl1", "Hi", timeout=0.2)

        assert platform.alive == []

    def test_the_deadline_bounds_the_look_for_a_sandbox_whose_answer_was_lost(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Only cleaning up may come after it."""
        cleaning, held_up = threading.Event(), []

        def find(_: Exchange) -> None:
            if len(platform.seen("GET", "/v2/sandboxes")) > 1:
                cleaning.set()
            held_up.append(not cleaning.wait(5))

        platform.on("POST", "/sandboxes$", platform.create_unanswered)
        platform.on("GET", "/v2/sandboxes", find)
        with pytest.raises(NetworkError):
            client.create_session("tpl1", deadline=0.2)

        wait_until(lambda: len(held_up) == 2)
        assert held_up == [False, False]
        assert platform.alive == []

    def test_the_deadline_bounds_the_look_for_the_last_output(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """It is good to have, but nobody waits for it as long as without a deadline."""
        told = threading.Event()
        ended = {"sandboxId": "sb1", "port": 8080, "message": "?", "exitCode": 3}
        platform.on("GET", "/ping", lambda e: e.reply(502, ended))
        platform.on("GET", "/sandboxes/", lambda _: told.wait(10) and None)
        started = time.monotonic()
        with pytest.raises(SandboxCreationError):
            client.create_session("tpl1", deadline=0.1)
        elapsed = time.monotonic() - started
        told.set()

        assert elapsed < 4.0  # without one it is 5 s

    def test_an_unreadable_agent_document(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """It matters only if the agent is not up by itself; the path is told."""
        bad = {"agent_runtime": json.dumps({"spec": {"entrypoint": 7}})}
        platform.templates = [template_record(metadata=bad, aliases=["bad"])]
        client.create_session("bad").close()
        platform.on("GET", "/ping", lambda e: e.reply(503, {"message": "starting"}))
        with pytest.raises(SandboxCreationError, match=r"tpl1.*spec\.entrypoint"):
            client.create_session("bad")

        assert platform.alive == []

    @pytest.mark.parametrize(
        ("status", "expected"),
        [
            (401, AuthenticationError),
            (403, PermissionDeniedError),
            (429, RateLimitError),
        ],
    )
    def test_refusals_keep_their_class(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        status: int,
        expected: type[Exception],
    ) -> None:
        """What the platform says is not wrapped."""
        answer = {"code": status, "message": "no"}
        platform.on("POST", "/sandboxes$", lambda e: e.reply(status, answer))
        with pytest.raises(expected):
            client.create_session("tpl1")

    def test_a_refused_ping_ends_the_waiting(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """An agent that wants credentials will want them later, too."""
        platform.on("GET", "/ping", lambda e: e.reply(401, {"message": "who?"}))
        with pytest.raises(AuthenticationError, match="sb1"):
            client.create_session("tpl1")

        assert platform.alive == []

    def test_a_sandbox_that_vanishes_meanwhile(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It is noticed long before the agent's time is over."""
        monkeypatch.setattr("ppio_agent.client.readiness._EDGE_LAG", 0.3)

        def vanish(exchange: Exchange) -> None:
            platform.killed.append("sb1")
            platform.sandboxes["sb1"].state = "killed"

        platform.on("GET", "/ping", vanish)
        with pytest.raises(SessionNotFoundError):
            client.create_session("tpl1", start_timeout=30)

    @pytest.mark.parametrize("moment", ["creating", "waiting"])
    def test_ctrl_c_leaves_nothing(
        self, client: AgentRuntimeClient, platform: FakePlatform, moment: str
    ) -> None:
        """Interrupted before the answer or while waiting: the sandbox is killed."""

        def interrupt(exchange: Exchange) -> None:
            if moment == "creating":
                platform.create_unanswered(exchange)
            if not interrupted:
                interrupted.append(True)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            if moment == "creating":
                threading.Event().wait(0.3)
            exchange.cut()

        interrupted: list[bool] = []
        path = ("POST", "/sandboxes$") if moment == "creating" else ("GET", "/ping")
        platform.on(*path, interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.create_session("tpl1")

        assert len(platform.sandboxes) == 1
        assert platform.alive == []

    def test_ctrl_c_while_invoking_leaves_nothing(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """A one-shot call owns its sandbox to the end."""

        def interrupt(exchange: Exchange) -> None:
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            threading.Event().wait(0.3)
            exchange.cut()

        platform.on("POST", "/invocations", interrupt)
        with pytest.raises(KeyboardInterrupt):
            client.invoke_agent("tpl1", "Hi")

        assert platform.alive == []

    def test_a_kill_that_failed_is_made_up_for(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The client tries again when it is closed."""
        platform.on("GET", "/ping", lambda e: e.reply(401, {"message": "who?"}))
        with (
            platform.overriding(
                "DELETE", ".*", lambda e: e.reply(500, {"message": "not now"})
            ),
            pytest.raises(AuthenticationError),
        ):
            client.create_session("tpl1")
        left = list(platform.alive)
        client.close()

        assert left == ["sb1"]
        assert platform.alive == []

    def test_closing_the_client_ends_the_waiting(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Its sandbox is killed before close returns."""
        pinged = threading.Event()

        def ping(exchange: Exchange) -> None:
            pinged.set()
            exchange.reply(503, {"message": "starting"})

        platform.on("GET", "/ping", ping)
        caught: list[BaseException] = []

        def create() -> None:
            try:
                client.create_session("tpl1", start_timeout=30)
            except ClientClosedError as error:
                caught.append(error)

        thread = threading.Thread(target=create)
        thread.start()
        assert pinged.wait(5)
        client.close()
        alive = list(platform.alive)
        thread.join(5)

        assert alive == []
        assert len(caught) == 1

    def test_nobody_there(self, make_client: Make) -> None:
        """A platform that cannot be reached is a network error that names it."""
        with pytest.raises(NetworkError) as caught:
            make_client(base_url="http://127.0.0.1:9").create_session("tpl1")

        assert "127.0.0.1:9" in str(caught.value.url)

    def test_a_platform_that_hangs(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """Control-plane calls have a limit of their own."""
        release = threading.Event()
        platform.on("GET", "/templates", lambda e: (release.wait(10), e.cut()))
        with pytest.raises(RequestTimeoutError):
            make_client(request_timeout=0.2).create_session("tpl1")
        release.set()
