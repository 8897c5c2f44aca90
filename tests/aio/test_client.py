"""The awaitable client against the scripted platform: cancellation leaves nothing."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from ppio_agent.aio import AgentRuntimeClient, Batch, SandboxSession, SessionState
from ppio_agent.exceptions import (
    InvocationError,
    PPIOAgentError,
    TemplateNotFoundError,
    ValidationError,
)
from tests.aio.support import until
from tests.support import wait_until
from tests.support_platform import KEY, Exchange, FakePlatform, echo_agent

Make = Callable[..., AgentRuntimeClient]


class Slow:
    """An agent that answers when it is told; its pings may wait, too."""

    def __init__(self, *, path: str = "/invocations") -> None:
        self.path = path
        self.reached = threading.Semaphore(0)
        self.go_on = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        if exchange.request.path == self.path:
            self.reached.release()
            assert self.go_on.wait(30)
        try:
            echo_agent(exchange)
        except OSError:
            exchange.answered = True


@pytest.fixture
def slow(platform: FakePlatform) -> Any:
    agent = Slow()
    platform.agent = agent
    yield agent
    agent.go_on.set()


async def _reached(agent: Slow) -> None:
    await until(lambda: agent.reached.acquire(blocking=False))


def test_a_session_over_its_life(platform: FakePlatform, make_client: Make) -> None:
    """Everything that a session can do, awaited; two loops use the same one."""
    client = make_client()

    async def first() -> SandboxSession:
        session = await client.create_session("tpl1", session_id="s-1")
        assert (session.session_id, session.template_id) == ("s-1", "tpl1")
        assert session.sandbox_id in platform.alive
        assert (await session.invoke("x")).result["echo"] == {"prompt": "x"}
        await session.pause()
        assert session.state is SessionState.PAUSED
        with pytest.raises(InvocationError, match="paused"):
            await session.invoke("x")
        session.auto_resume = True
        assert session.auto_resume
        await session.invoke("x")
        await session.refresh(60)
        assert (await session.get_status()).state is SessionState.ACTIVE
        assert not session.busy
        assert session.expires_at
        assert [s.session_id for s in client.list_sessions()] == ["s-1"]
        return session

    async def second(session: SandboxSession) -> None:
        assert (await session.ping()).status is not None
        assert session.snapshot().sandbox_id in repr(session)
        async with session:
            pass
        assert session.state is SessionState.CLOSED
        async with client:
            assert await client.close_session("s-1") is False
            assert await client.close_all() == {}

    session = asyncio.run(first())
    asyncio.run(second(session))
    assert platform.alive == []


def test_templates_and_settings(platform: FakePlatform, make_client: Make) -> None:
    """What does not block is shared as it is."""

    async def main() -> None:
        async with make_client(timeout=7) as client:
            assert [t.template_id for t in await client.list_templates()] == ["tpl1"]
            assert await client.template_exists("tpl1")
            assert (await client.get_template("tpl1")).template_id == "tpl1"
            assert len(await client.templates.list_templates(tags=["ai"])) == 1
            with pytest.raises(TemplateNotFoundError):
                await client.templates.get_template("other")
            assert not await client.templates.template_exists("other")
            client.templates.invalidate()
            assert client.templates.skipped == 0
            quick = client.with_options(timeout=3)
            assert (quick.config.timeout, client.config.timeout) == (3, 7)
            assert (await quick.invoke_agent("tpl1", "x")).result["count"] == 1
            assert client.auth.api_key.startswith("sk-")
            copy = pickle.loads(pickle.dumps(client))
            assert copy.config == client.config
            with pytest.raises(ValidationError):
                await client.invoke_agent("tpl1", 3)  # type: ignore[arg-type]

    asyncio.run(main())


def test_a_cancelled_call_leaves_no_sandbox(
    platform: FakePlatform, make_client: Make, slow: Slow
) -> None:
    """Neither the one-shot's own, nor those of a whole group that fails."""

    async def main() -> None:
        async with make_client() as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client.invoke_agent("tpl1", "x"), 0.2)
            await until(lambda: platform.alive == [])

            calls = [
                asyncio.create_task(client.invoke_agent("tpl1", "x")) for _ in "123"
            ]
            for _ in (*calls, "the first call"):
                await _reached(slow)
            for call in calls:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(o) for o in outcomes] == [asyncio.CancelledError] * 3
            await until(lambda: platform.alive == [])

    asyncio.run(main())


async def _failing(call: Any, reached: Callable[[], Any]) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(call)
        await reached()
        raise ZeroDivisionError


def test_task_groups_and_timeouts(
    platform: FakePlatform, make_client: Make, slow: Slow
) -> None:
    """Where Python has them they mean what they mean."""

    async def grouped(client: AgentRuntimeClient) -> None:
        failing = _failing(client.invoke_agent("tpl1", "x"), lambda: _reached(slow))
        with pytest.raises(BaseException) as caught:  # noqa: PT011 - a group of errors
            await failing
        assert [type(e) for e in caught.value.exceptions] == [ZeroDivisionError]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.invoke_agent("tpl1", "x")

    async def main() -> None:
        async with make_client() as client:
            if sys.version_info >= (3, 11):
                await grouped(client)
            await until(lambda: platform.alive == [])

    asyncio.run(main())


def test_a_session_created_for_nobody_ends(
    platform: FakePlatform, make_client: Make
) -> None:
    """Whether it was still being made or just done when its task was cancelled."""
    agent = platform.agent = Slow(path="/ping")

    async def main() -> None:
        async with make_client() as client:
            creating = asyncio.create_task(client.create_session("tpl1"))
            await _reached(agent)
            creating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await creating
            await until(lambda: platform.alive == [])
            assert len(platform.killed) == 1

            agent.go_on.set()
            creating = asyncio.create_task(client.create_session("tpl1"))
            await asyncio.sleep(0)
            # The loop is held up until the session is there.
            wait_until(client.list_sessions)
            wait_until(lambda: client._bridge._calls.busy == 0)
            creating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await creating
            await until(lambda: platform.alive == [])

    asyncio.run(main())


def test_a_session_attached_for_nobody_lives_on(
    platform: FakePlatform, make_client: Make
) -> None:
    """It was there before, and is not this task's to end."""

    async def main() -> None:
        async with make_client() as owner, make_client() as client:
            session = await owner.create_session("tpl1")
            attaching = asyncio.create_task(client.attach_session(session.sandbox_id))
            await asyncio.sleep(0)
            wait_until(client.list_sessions)
            wait_until(lambda: client._bridge._calls.busy == 0)
            attaching.cancel()
            with pytest.raises(asyncio.CancelledError):
                await attaching
            await until(lambda: client.list_sessions() == ())
            assert platform.alive == [session.sandbox_id]
            ref = await session.detach()
            async with await client.attach_session(ref, own=True) as again:
                assert (await again.invoke("x")).result["count"] == 1
        assert platform.alive == []

    asyncio.run(main())


FORKED = """
import asyncio, os, sys
from ppio_agent.aio import AgentRuntimeClient, ClientConfig

client = AgentRuntimeClient(sys.argv[2], config=ClientConfig(base_url=sys.argv[1]))


async def ask():
    answer = await client.invoke_agent("tpl1", "x")
    return answer.result["count"]


async def end():
    await ask()
    await client.close()


assert asyncio.run(ask()) == 1
child = os.fork()
asyncio.run(end())
if child:
    assert os.waitpid(child, 0)[1] == 0
"""


def test_a_forked_child_goes_on_with_it(platform: FakePlatform) -> None:
    """As under a server that forks its workers: parent and child each get answers."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED, platform.url, KEY],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert platform.alive == []


class TestBatch:
    def test_gives_items_and_results(
        self, platform: FakePlatform, make_client: Make
    ) -> None:
        """By iteration, or all at once."""

        async def main() -> None:
            async with make_client() as client:
                batch = await client.invoke_many("tpl1", ["a", "b"], max_workers=2)
                assert [item.index async for item in batch] == [0, 1]
                async with await client.invoke_many("tpl1", ["a", "b", "c"]) as batch:
                    assert isinstance(batch, Batch)
                    results = await batch.results()
                assert [r.result["echo"]["prompt"] for r in results] == ["a", "b", "c"]

        asyncio.run(main())
        assert platform.alive == []

    @pytest.mark.parametrize("all_at_once", [True, False])
    def test_ends_with_the_task_that_waits(
        self,
        platform: FakePlatform,
        make_client: Make,
        slow: Slow,
        *,
        all_at_once: bool,
    ) -> None:
        """What runs is aborted, and its sandboxes are killed."""

        async def main() -> None:
            async with make_client() as client:
                batch = await client.invoke_many("tpl1", ["x"] * 20, max_workers=2)
                call = batch.results() if all_at_once else anext(batch)
                waiting = asyncio.ensure_future(call)
                await _reached(slow)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                await until(lambda: client._bridge._calls.busy == 0)
                await until(lambda: platform.alive == [])

        asyncio.run(main())

    def test_raises_the_first_error(
        self, platform: FakePlatform, make_client: Make
    ) -> None:
        """As the blocking one does."""

        async def main() -> None:
            async with make_client() as client:
                batch = await client.invoke_many("tpl1", ["a", 3])  # type: ignore[list-item]
                with pytest.raises(PPIOAgentError):
                    async for _ in batch:
                        pass

        asyncio.run(main())
        assert platform.alive == []
