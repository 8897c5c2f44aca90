"""What one client does: one-shot calls, conversations, its own end."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ppio_agent._util.clock import Deadline
from ppio_agent.client import AgentRuntimeClient, ClientConfig, InvocationRequest
from ppio_agent.client.connection import Backend, connect
from ppio_agent.exceptions import (
    AuthenticationError,
    ClientClosedError,
    InvocationCancelledError,
    InvocationError,
    RequestTimeoutError,
    SessionNotFoundError,
    TemplateNotFoundError,
    ValidationError,
)
from ppio_agent.hooks import hookimpl
from ppio_agent.transport import CallScope
from tests.support import wait_until
from tests.support_platform import (
    KEY,
    LIKE_A_DEAD_SANDBOX,
    Exchange,
    FakePlatform,
    encode,
)

Make = Callable[..., AgentRuntimeClient]


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_belongs_to_its_process_is_not_copied(
    client: AgentRuntimeClient, how: Callable[[object], object]
) -> None:
    """It says so, and what to do; the original is as it was."""
    with (
        client.invoke_many("tpl1", ["a", "b"]) as batch,
        client.invoke_agent_stream("tpl1", "Hi") as stream,
    ):
        future = client.submit("tpl1", "Hi")
        for what, instead in [
            (batch, "results"),
            (stream, "resume_stream"),
            (future, "result"),
            (client.templates, "client"),
        ]:
            name = type(what).__name__
            with pytest.raises(TypeError, match=f"{name} is neither .*{instead}"):
                how(what)
        assert len(batch.results()) == 2
        assert future.result(20).result["echo"] == {"prompt": "Hi"}
        assert list(stream) != []


class TestArguments:
    @pytest.mark.parametrize(
        ("call", "arguments", "said"),
        [
            ("invoke_agent_stream", {"timeout": 5}, "use deadline="),
            ("invoke_agent", {"env_var": {}}, r"env_var \(did you mean env_vars"),
            ("invoke_agent_stream", {"zz": 1, "secured": 1}, r"secured \(.*zz;"),
            ("invoke_agent", {"zz": 1, "session_id": "s"}, "timeout_seconds$"),
        ],
    )
    def test_those_that_do_not_exist_are_named(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        call: str,
        arguments: dict[str, Any],
        said: str,
    ) -> None:
        """With what may have been meant, before anything is asked."""
        with pytest.raises(TypeError, match=said):
            getattr(client, call)("tpl1", "Hi", **arguments)
        assert platform.requests == []


class TestOneShot:
    def test_answers_and_kills_its_sandbox(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The response has the result and the ids; no sandbox is left."""
        response = client.invoke_agent("tpl1", "Hello")

        assert response.result["echo"] == {"prompt": "Hello"}
        assert response["result"] == response.result
        assert response.invocation_id == "inv_1"
        assert response.sandbox_id == "sb1"
        assert platform.alive == []
        assert client.list_sessions() == ()

    def test_kills_its_sandbox_after_an_error(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """A failing agent is no reason to leave its sandbox behind."""
        platform.on("POST", "/invocations", lambda e: e.reply(500, {
            "result": None, "status": "error", "duration": 0.1,
            "metadata": {"error_type": "KeyError"}, "error": "no such city",
        }))  # fmt: skip

        with pytest.raises(InvocationError, match="no such city") as caught:
            client.invoke_agent("tpl1", "Hello")

        assert caught.value.agent_error == "KeyError"
        assert platform.alive == []

    def test_stream_keeps_its_sandbox_until_its_end(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """While the stream is read the sandbox lives; afterwards it is gone."""
        platform.on("POST", "/invocations", _three_chunks)

        stream = client.invoke_agent_stream("tpl1", "Hello")
        first = next(stream)
        alive_while_reading = list(platform.alive)
        rest = list(stream)

        assert [first, *rest] == ["chunk 0", "chunk 1", "chunk 2"]
        assert alive_while_reading == ["sb1"]
        assert platform.alive == []

    def test_stream_left_early_kills_its_sandbox(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Leaving the with block ends the sandbox, whatever is left unread."""
        platform.on("POST", "/invocations", _three_chunks)

        with client.invoke_stream("tpl1", "Hello") as stream:
            next(stream)

        assert platform.alive == []

    def test_abandoned_stream_gives_its_sandbox_back(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """A stream that nobody holds any more has its sandbox killed for it."""
        platform.on("POST", "/invocations", _three_chunks)

        stream = client.invoke_agent_stream("tpl1", "Hello")
        next(stream)
        with pytest.warns(ResourceWarning, match="neither read to its end nor closed"):
            del stream

        wait_until(lambda: not platform.alive, what="the sandbox is killed")

    def test_unknown_template_creates_nothing(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The error names the template and says how to list and deploy."""
        with pytest.raises(
            TemplateNotFoundError, match=r"'nope'.*list_templates.*deploy"
        ):
            client.invoke_agent("nope", "Hello")

        assert platform.seen("POST", "/sandboxes") == []

    @pytest.mark.parametrize(
        ("request_", "message"),
        [
            ([1], "not list"),
            (None, "not NoneType"),
            (b"raw", "not bytes"),
            ({"a": [1.0, float("nan")]}, r"\$\.a\[1\]"),
            (InvocationRequest(data={"x": {"y": float("inf")}}), r"\$\.data\.x\.y"),
        ],
    )
    def test_bad_request_is_refused_before_anything_is_sent(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        request_: Any,
        message: str,
    ) -> None:
        """No sandbox is created and no request sent for what has no JSON form."""
        for call in (client.invoke_agent, client.invoke_agent_stream):
            with pytest.raises(ValidationError, match=message):
                call("tpl1", request_)

        assert platform.requests == []

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"idempotency_key": "two words"}, "idempotency key"),
            ({"headers": {"Idempotency-Key": "mine"}}, "pass idempotency_key="),
            ({"headers": {"X-N": 3}}, "X-N"),
            ({"headers": {"bad name": "x"}}, "bad name"),
        ],
    )
    def test_bad_headers_are_refused_before_anything_is_sent(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        given: dict[str, Any],
        message: str,
    ) -> None:
        """No sandbox is created for a call that could not be sent to it."""
        for call in (client.invoke_agent, client.invoke_agent_stream):
            with pytest.raises(ValidationError, match=message):
                call("tpl1", "Hi", **given)

        assert platform.requests == []

    @pytest.mark.parametrize("what", ["stream", "session"])
    def test_kills_its_sandbox_in_a_scope_that_was_aborted(
        self, client: AgentRuntimeClient, platform: FakePlatform, what: str
    ) -> None:
        """Who aborts a task does not stop it from cleaning up."""
        scope = CallScope()

        def use() -> None:
            opened = (
                client.invoke_agent_stream("tpl1", "Hi")
                if what == "stream"
                else client.create_session("tpl1")
            )
            with opened:
                scope.abort(InvocationCancelledError("enough"))
                client.list_templates(refresh=True)

        with (
            pytest.raises(InvocationCancelledError, match="enough"),
            scope.running(),
        ):
            use()

        assert platform.alive == []


class TestConversations:
    def test_reuse_the_sandbox(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The agent's memory is there in the next call with the same session id."""
        counts = [
            client.invoke_agent("tpl1", "Hi", session_id="s").result["count"]
            for _ in range(3)
        ]

        assert counts == [1, 2, 3]
        assert platform.alive == ["sb1"]
        assert [s.session_id for s in client.list_sessions()] == ["s"]
        sent = platform.seen("POST", "/invocations")[0].headers
        assert sent["x-ppio-session-id"] == "s"

    def test_names_of_one_template_share_a_conversation(
        self, client: AgentRuntimeClient
    ) -> None:
        """Id, alias and name lead to the same sandbox."""
        used = {
            client.invoke_agent(ref, "Hi", session_id="s").sandbox_id
            for ref in ("tpl1", "alias-tpl1", "agent-tpl1", "agent-tpl1:1.0.0")
        }

        assert used == {"sb1"}

    def test_same_id_with_another_template_is_another(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """A session id belongs to its template."""
        from tests.support_platform import template_record

        platform.templates.append(template_record("tpl2"))

        one = client.invoke_agent("tpl1", "Hi", session_id="s")
        other = client.invoke_agent("tpl2", "Hi", session_id="s")

        assert one.sandbox_id != other.sandbox_id

    def test_twenty_threads_share_one_sandbox(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """First calls at once create a single sandbox, and all answers are its."""
        barrier = threading.Barrier(20)

        def call(_: int) -> str:
            barrier.wait()
            response = client.invoke_agent("tpl1", "Hi", session_id="s")
            return str(response.result["sandbox"])

        with ThreadPoolExecutor(20) as threads:
            used = set(threads.map(call, range(20)))

        assert used == {"sb1"}
        assert len(platform.seen("POST", "/sandboxes$")) == 1

    def test_a_dead_one_is_replaced(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """After its sandbox was killed from outside the next call gets a new one."""
        client.invoke_agent("tpl1", "Hi", session_id="s")
        platform.killed.append("sb1")
        platform.sandboxes["sb1"].state = "killed"

        response = client.invoke_agent("tpl1", "Hi", session_id="s")

        assert response.sandbox_id == "sb2"
        assert [s.sandbox_id for s in client.list_sessions()] == ["sb2"]

    @pytest.mark.parametrize(("status", "body"), LIKE_A_DEAD_SANDBOX)
    def test_one_whose_agent_only_says_so_is_not(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        status: int,
        body: dict[str, Any],
    ) -> None:
        """The platform says that it lives, so the agent has run, and does so once."""
        platform.on("POST", "/inv", lambda e: e.reply(status, body))

        with pytest.raises(SessionNotFoundError):
            client.invoke_agent("tpl1", "Hi", session_id="s")

        assert len(platform.seen("POST", "/inv")) == 1
        assert platform.alive == ["sb1"]

    def test_one_paused_by_the_platform_is_resumed(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """What the agent remembers is worth more than a new sandbox."""
        client.invoke_agent("tpl1", "Hi", session_id="s")
        platform.sandboxes["sb1"].state = "paused"

        response = client.invoke_agent("tpl1", "Hi", session_id="s")

        assert response.result["count"] == 2

    def test_close_session_ends_it(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """It is found by its session id, once."""
        client.invoke_agent("tpl1", "Hi", session_id="s")

        assert client.close_session("s") is True
        assert client.close_session("s") is False
        assert platform.alive == []

    @pytest.mark.parametrize("session_id", ["", "a b", "ü", "x" * 257])
    def test_bad_ids_are_refused(
        self, client: AgentRuntimeClient, session_id: str
    ) -> None:
        """An id that cannot stand in a header never leaves the process."""
        with pytest.raises(ValidationError, match="session id"):
            client.invoke_agent("tpl1", "Hi", session_id=session_id)


class TestEnd:
    def test_close_kills_all_sessions(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """No sandbox outlives its client, and the client takes no more calls."""
        for _ in range(3):
            client.create_session("tpl1")
        alive_before = len(platform.alive)

        client.close()
        client.close()

        assert alive_before == 3
        assert platform.alive == []
        for call in (
            lambda: client.invoke_agent("tpl1", "Hi"),
            client.list_templates,
            lambda: client.create_session("tpl1"),
        ):
            with pytest.raises(ClientClosedError, match="make a new one"):
                call()

    def test_close_aborts_what_runs(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """A call that waits for its agent ends at once with a typed error."""
        reached, release = threading.Event(), threading.Event()

        def hang(exchange: Exchange) -> None:
            reached.set()
            release.wait(10)
            exchange.cut()

        platform.on("POST", "/invocations$", hang)
        session = client.create_session("tpl1")
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(session.invoke, "Hi")
            assert reached.wait(5)
            client.close()
            error = running.exception(timeout=5)
            release.set()

        assert type(error).__name__ == "SessionClosedError"
        assert platform.alive == []

    def test_a_close_that_was_interrupted_can_be_repeated(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It takes no calls from the first time on; the second ends what is left."""
        client.create_session("tpl1")
        book = client._run.core.book
        book.add_leftover(client.create_session("tpl1").detach().sandbox_id)

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("ppio_agent.client.sessions.run_all", interrupted)
            with pytest.raises(KeyboardInterrupt):
                client.close()
        with pytest.raises(ClientClosedError):
            client.create_session("tpl1")
        alive = platform.alive
        client.close()

        assert alive == ["sb1", "sb2"]
        assert platform.alive == []

    def test_close_all_tells_failures_and_goes_on(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """One sandbox that cannot be ended does not save the others."""
        for _ in range(3):
            client.create_session("tpl1")
        with platform.overriding(
            "DELETE", "/sandboxes/sb2", lambda e: e.reply(500, {"message": "no"})
        ):
            failures = client.close_all()

        assert list(failures) == ["sb2"]
        assert platform.alive == ["sb2"]
        assert client.close_all() == {}
        assert platform.alive == []

    def test_pickles_as_its_settings(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """What is unpickled works, with connections and sessions of its own."""
        client.create_session("tpl1")

        with pickle.loads(pickle.dumps(client)) as other:
            assert other.list_sessions() == ()
            assert other.invoke_agent("tpl1", "Hi").status == "success"

        assert platform.alive == ["sb1"]


def test_pickles_with_the_key_that_it_has_now(
    client: AgentRuntimeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the one from before it was exchanged; without that of the environment."""
    client.auth.rotate(api_key="sk-test-another-one")
    monkeypatch.setenv("PPIO_API_KEY", "sk-test-of-the-environment")

    with pickle.loads(pickle.dumps(client)) as other:
        assert other.auth.api_key == "sk-test-another-one"
    with AgentRuntimeClient(config=client.config) as unnamed:
        assert b"sk-test" not in pickle.dumps(unnamed)


class SlowPlatform:
    """A plug-in that knows the platform, once it is let go."""

    def __init__(self, url: str) -> None:
        self.go_on = threading.Event()
        self.starts = 0
        self._url = url

    @hookimpl
    def ppio_default_platform(self, config: object) -> tuple[str, str]:
        self.starts += 1
        assert self.go_on.wait(10)
        return self._url, KEY


@pytest.fixture
def slow(platform: FakePlatform) -> Iterator[SlowPlatform]:
    slow = SlowPlatform(platform.url)
    yield slow
    slow.go_on.set()


class TestPlatformOfChoice:
    def test_no_key_names_the_variable(self, platform: FakePlatform) -> None:
        """Whoever gives an address and no key is told what to set."""
        with pytest.raises(AuthenticationError, match="PPIO_API_KEY"):
            AgentRuntimeClient(config=ClientConfig(base_url=platform.url))

    def test_nothing_named_uses_the_local_platform(
        self, platform: FakePlatform
    ) -> None:
        """The hook is asked with the first call, and gives address and key."""
        asked = []

        class Local:
            @hookimpl
            def ppio_default_platform(self, config: ClientConfig) -> tuple[str, str]:
                asked.append(config)
                return platform.url, "sk-of-the-local-platform"

        with AgentRuntimeClient(plugins=[Local()]) as client:
            asked_when_made = len(asked)
            assert client.invoke_agent("tpl1", "Hi").status == "success"
            client.list_templates()

        assert asked_when_made == 0
        assert len(asked) == 1
        sent = platform.seen("POST", "/sandboxes")[0].headers
        assert sent["x-api-key"] == "sk-of-the-local-platform"

    def test_its_start_is_waited_for_no_longer_than_a_call_may_take(
        self, slow: SlowPlatform
    ) -> None:
        """Nor after its scope was aborted; later calls find what the first began."""
        scope = CallScope()
        with AgentRuntimeClient(plugins=[slow]) as client:
            with pytest.raises(RequestTimeoutError):
                client.invoke_agent("tpl1", "Hi", timeout=0.05)
            with pytest.raises(RequestTimeoutError):
                client.invoke_agent_runtime("tpl1", "Hi", timeout=0.05)
            with ThreadPoolExecutor(1) as threads, scope.running():
                threads.submit(lambda: scope.abort(InvocationCancelledError("enough")))
                with pytest.raises(InvocationCancelledError, match="enough"):
                    client.list_templates()
            slow.go_on.set()

            assert client.invoke_agent("tpl1", "Hi").status == "success"

        assert slow.starts == 1

    def test_a_client_that_is_closed_while_it_starts_leaves_no_connection(
        self, slow: SlowPlatform, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever waits for it is told, and what comes late is closed at once."""
        made: list[Backend] = []

        def connecting(*args: Any, **about: Any) -> Backend:
            made.append(connect(*args, **about))
            return made[0]

        monkeypatch.setattr("ppio_agent.client.core.connect", connecting)
        client = AgentRuntimeClient(plugins=[slow])
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(client.list_templates)
            wait_until(lambda: slow.starts)
            client.close()
            slow.go_on.set()
            with pytest.raises(ClientClosedError):
                waiting.result(5)

        with pytest.raises(ClientClosedError):
            made[0].control.list_templates(Deadline.after(1.0))

    def test_configured_headers_reach_both_planes(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """They travel as any plug-in's do."""
        client = make_client(headers={"X-Team": "search"})

        client.invoke_agent("tpl1", "Hi")

        assert {r.headers.get("x-team") for r in platform.requests} == {"search"}

    def test_the_key_never_reaches_the_agent(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Code in a sandbox is not the caller's own."""
        client.invoke_agent("tpl1", "Hi")

        to_agent = [r for r in platform.requests if r.to_agent]
        assert to_agent
        assert not any(KEY in str(r) for r in to_agent)

    def test_the_key_is_forwarded_if_asked_for(
        self, make_client: Make, platform: FakePlatform
    ) -> None:
        """Agents of the field may rely on it."""
        make_client(forward_api_key=True).invoke_agent("tpl1", "Hi")

        sent = platform.seen("POST", "/invocations")[0].headers
        assert sent["authorization"] == f"Bearer {KEY}"


def _three_chunks(exchange: Exchange) -> None:
    exchange.start_stream(invocation_id="inv_1")
    for number in range(3):
        data = encode(f"chunk {number}")
        exchange.send(b"id: %d\ndata: %b\n\n" % (number + 1, data))
    exchange.send(b'event: end\ndata: {"status":"succeeded","events":3}\n\n')
    exchange.end_stream()
