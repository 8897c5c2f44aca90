"""Submitted calls: their futures, their threads, and what ends them."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import itertools
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, as_completed, wait
from pathlib import Path

import pytest

from ppio_agent._util.clock import Deadline
from ppio_agent.client import AgentRuntimeClient, ClientConfig, InvocationFuture
from ppio_agent.client.futures import Submissions
from ppio_agent.exceptions import (
    ClientClosedError,
    InvocationError,
    ValidationError,
)
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from ppio_agent.transport import pause
from ppio_agent.wire.models import InvocationResponse
from tests.support import SLOW, new_threads, wait_until, write_agent
from tests.support_platform import Exchange, FakePlatform


class TestFuture:
    def test_gives_the_answer(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """From a sandbox of its own, on a thread of the client's."""
        threads = new_threads("ppio-client-1")
        future = client.submit("tpl1", "Hello", timeout=20)

        assert future.result(10).result["echo"] == {"prompt": "Hello"}
        assert future.done()
        assert not future.running()
        assert future.cancel() is False
        assert threads() == ["ppio-client-1"]
        assert platform.alive == []

    def test_gives_the_error(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Whatever `invoke_agent` would raise."""
        platform.on("POST", "/inv", lambda e: e.reply(
            500, {"result": None, "status": "error", "error": "no"}))  # fmt: skip

        with pytest.raises(InvocationError, match="no"):
            client.submit("tpl1", "Hello").result(10)
        assert isinstance(client.submit("tpl1", [1]).exception(10), ValidationError)

    def test_keeps_conversations(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """It takes what `invoke_agent` takes."""
        futures = [client.submit("tpl1", "Hi", session_id="s1") for _ in range(5)]

        assert {f.result(10).sandbox_id for f in futures} == {"sb1"}
        assert platform.alive == ["sb1"]

    def test_works_with_the_standard_library(self, client: AgentRuntimeClient) -> None:
        """`wait`, `as_completed` and asyncio take it for what it is."""
        futures = [client.submit("tpl1", str(n)) for n in range(6)]

        assert wait(futures, timeout=10).done == set(futures)
        assert set(as_completed(futures)) == set(futures)

        async def ask() -> InvocationResponse:
            return await asyncio.wrap_future(client.submit("tpl1", "7"))

        assert asyncio.run(ask()).result["echo"] == {"prompt": "7"}

    def test_runs_in_the_context_of_its_caller(self, submissions: Submissions) -> None:
        """As it was when it was submitted; what the call sets is its own."""
        who = contextvars.ContextVar("who", default="nobody")
        seen: list[str] = []

        def call() -> InvocationResponse:
            seen.append(who.get())
            who.set("the call")
            return _ANSWER

        who.set("the caller")
        future = submissions.submit(call)
        who.set("later")

        assert future.result(10) is _ANSWER
        assert seen == ["the caller"]
        assert who.get() == "later"


class TestCancel:
    def test_of_a_running_call_ends_it(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """At once for whoever waits; its sandbox is killed."""
        arrived, release = threading.Event(), threading.Event()

        def answer(exchange: Exchange) -> None:
            arrived.set()
            release.wait(10)
            exchange.cut()

        platform.on("POST", "/invocations$", answer)
        future = client.submit("tpl1", "Hello")
        assert arrived.wait(10)
        assert future.running()
        called: list[InvocationFuture] = []
        future.add_done_callback(called.append)  # type: ignore[arg-type]  # its class
        started = time.monotonic()
        cancelled = future.cancel()
        took = time.monotonic() - started

        assert cancelled
        assert took < 0.05 * SLOW
        assert (future.cancelled(), future.done(), future.running()) == (
            True, True, False,
        )  # fmt: skip
        assert called == [future]
        assert future.cancel()
        with pytest.raises(CancelledError):
            future.result(0)
        assert wait([future], timeout=0).done == {future}
        wait_until(lambda: platform.sandboxes and not platform.alive, timeout=2)
        release.set()

    def test_of_a_waiting_call_is_as_usual(self, submissions: Submissions) -> None:
        """It never runs."""
        release = threading.Event()
        busy = [submissions.submit(_blocking(release)) for _ in range(32)]
        ran: list[int] = []
        waiting = submissions.submit(lambda: (ran.append(1), _ANSWER)[1])

        assert not waiting.running()
        assert waiting.cancel()
        release.set()
        assert [f.result(10) for f in busy] == [_ANSWER] * 32
        assert submissions.submit(lambda: _ANSWER).result(10) is _ANSWER
        assert ran == []

    def test_by_many_at_once_has_one_outcome(self, submissions: Submissions) -> None:
        """Also while the call ends: either all say so, or none."""
        for _ in range(50):
            go = threading.Event()
            future = submissions.submit(_blocking(go))
            said: list[bool] = []
            threads = [
                threading.Thread(target=lambda f=future, s=said: s.append(f.cancel()))
                for _ in range(3)
            ]
            for thread in threads[:1]:
                thread.start()
            go.set()
            for thread in threads[1:]:
                thread.start()
            for thread in threads:
                thread.join()

            assert said == [future.cancelled()] * 3
            if not future.cancelled():
                assert future.result(10) is _ANSWER

    def test_reaches_pauses_of_the_client(self, submissions: Submissions) -> None:
        """Not only calls that wait for an answer."""
        ended = threading.Event()

        def call() -> InvocationResponse:
            try:
                pause(Deadline.after(30))
            finally:
                ended.set()
            return _ANSWER

        future = submissions.submit(call)
        wait_until(future.running)

        assert future.cancel()
        assert ended.wait(5)


AGENT = """
import threading
from pathlib import Path
from ppio_agent import PPIOAgentRuntimeApp

app = PPIOAgentRuntimeApp()


@app.entrypoint
def agent(request, context):
    Path(request["folder"], "begun").touch()
    for _ in range(1000):
        if context.cancelled:
            Path(request["folder"], "cancelled").touch()
            break
        threading.Event().wait(0.01)


if __name__ == "__main__":
    app.run()
"""


def test_cancel_reaches_the_agent_and_its_sandbox(tmp_path: Path) -> None:
    """On the real platform: it returns at once, the agent sees it, the sandbox goes."""
    config = PlatformConfig(data_dir=tmp_path / "data", port=0, backend="process")
    with SandboxPlatform(config) as platform:
        platform.deploy(write_agent(tmp_path / "slow", AGENT, name="slow"))
        config = ClientConfig(base_url=platform.url)
        with AgentRuntimeClient(platform.api_key, config=config) as client:
            future = client.submit("slow", {"folder": str(tmp_path)})
            wait_until((tmp_path / "begun").exists, timeout=20)
            started = time.monotonic()
            assert future.cancel()
            took = time.monotonic() - started

            assert took < 0.05 * SLOW
            wait_until((tmp_path / "cancelled").exists, timeout=2)
            wait_until(lambda: not platform.sandboxes.list_sandboxes(), timeout=2)


class TestPool:
    def test_is_of_32_threads_and_holds_up_who_submits_too_much(
        self, submissions: Submissions
    ) -> None:
        """1,000 calls wait; the next is taken when one of them has a thread."""
        threads = new_threads("ppio-client-")
        release = threading.Event()
        futures = [submissions.submit(_blocking(release)) for _ in range(32)]
        wait_until(lambda: all(f.running() for f in futures))
        futures += [submissions.submit(_blocking(release)) for _ in range(1000)]
        late: list[InvocationFuture] = []
        submitter = threading.Thread(
            target=lambda: late.append(submissions.submit(_blocking(release)))
        )
        submitter.start()
        submitter.join(0.1)
        held_up = submitter.is_alive()
        futures[-1].cancel()
        submitter.join(5)

        assert held_up
        assert len(threads()) == 32
        assert len(late) == 1
        release.set()
        assert wait([*futures, *late], timeout=20).not_done == set()

    def test_lets_callbacks_submit_without_waiting(
        self, submissions: Submissions
    ) -> None:
        """They run on its threads, so they would wait for themselves."""
        release = threading.Event()
        again: list[InvocationFuture] = []
        futures = []
        for _ in range(1032):
            future = submissions.submit(_blocking(release))
            future.add_done_callback(
                lambda _: again.append(submissions.submit(lambda: _ANSWER))
            )
            futures.append(future)
            if len(futures) == 32:
                wait_until(lambda: all(f.running() for f in futures))
        release.set()

        wait_until(lambda: len(again) == 1032 and all(f.done() for f in again))

    def test_goes_on_in_a_forked_child(
        self, make_client: Callable[..., AgentRuntimeClient]
    ) -> None:
        """With threads of its own."""
        client = make_client()
        client.submit("tpl1", "1").result(10)
        child = os.fork()
        if child == 0:
            try:
                ok = client.submit("tpl1", "2").result(10).result["echo"]
                os._exit(0 if ok == {"prompt": "2"} else 1)
            finally:
                os._exit(2)

        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.submit("tpl1", "3").result(10).result["count"] == 1


class TestClose:
    def test_of_the_client_ends_all_futures(
        self,
        make_client: Callable[..., AgentRuntimeClient],
        platform: FakePlatform,
    ) -> None:
        """Those that run and those that wait; no sandbox is left."""
        release = threading.Event()
        arrived = itertools.count()
        seen: list[int] = []

        def answer(exchange: Exchange) -> None:
            seen.append(next(arrived))
            release.wait(10)
            exchange.cut()

        platform.on("POST", "/invocations$", answer)
        client = make_client()
        futures = [client.submit("tpl1", str(n)) for n in range(40)]
        wait_until(lambda: len(seen) == 32)
        client.close()
        release.set()

        kinds = {type(f.exception(0)) for f in futures}
        assert kinds == {ClientClosedError}
        assert platform.alive == []
        with pytest.raises(ClientClosedError, match="make a new one"):
            client.submit("tpl1", "late")

    def test_reaches_who_waits_to_submit(self, submissions: Submissions) -> None:
        """A thread that is held up does not hang."""
        release = threading.Event()
        for _ in range(1032):
            submissions.submit(_blocking(release))
        errors: list[Exception] = []

        def submit() -> None:
            try:
                while True:
                    submissions.submit(_blocking(release))
            except ClientClosedError as error:
                errors.append(error)

        submitter = threading.Thread(target=submit)
        submitter.start()
        submissions.close(_CLOSED, 0)
        submitter.join(5)
        release.set()

        assert [str(e) for e in errors] == [str(_CLOSED)]


_ANSWER = InvocationResponse(result=1)
_CLOSED = ClientClosedError("closed")


def _blocking(release: threading.Event) -> Callable[[], InvocationResponse]:
    def call() -> InvocationResponse:
        release.wait(20)
        return _ANSWER

    return call


@pytest.fixture
def submissions() -> Iterator[Submissions]:
    made = Submissions()
    yield made
    made.close(copy.copy(_CLOSED), 5)
