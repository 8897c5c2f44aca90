"""Streams that are awaited: read ahead, ended in every way, never left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from ppio_agent._util.threads import NoThreadError
from ppio_agent.aio import AgentRuntimeClient, RuntimeStream, StreamingResponse
from ppio_agent.exceptions import (
    ClientClosedError,
    ConflictError,
    InvocationError,
    StreamClosedError,
    StreamInterruptedError,
)
from tests.aio.support import until
from tests.support import SLOW, new_threads, wait_until
from tests.support_platform import Exchange, FakePlatform, echo_agent

Make = Callable[..., AgentRuntimeClient]
Story = Callable[[AgentRuntimeClient], Coroutine[Any, Any, None]]


class Teller:
    """An agent that streams `chunks` numbers, then is silent until it is left."""

    def __init__(self, chunks: int, *, ends: bool = False) -> None:
        self.chunks, self.ends = chunks, ends
        self.sent = 0
        self.left = threading.Event()
        self._over = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        if exchange.request.path != "/invocations":
            echo_agent(exchange)
            return
        exchange.start_stream()
        try:
            for number in range(self.chunks):
                exchange.send(b'data: {"chunk": "%d "}\n\n' % number)
                self.sent += 1
            while not self.ends and not self._over.wait(0.01):
                exchange.send(b": still here\n\n")
            exchange.end_stream()
        except OSError:
            pass
        finally:
            self.left.set()

    def stop(self) -> None:
        self._over.set()


@pytest.fixture
def run(make_client: Make) -> Callable[[Story], None]:
    """Run a story in a loop of its own, which has nothing to complain of."""

    def run(story: Story) -> None:
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            async with make_client() as client:
                await story(client)

        asyncio.run(main())
        assert complaints == []

    return run


def readers() -> Callable[[], list[str]]:
    return new_threads("ppio-aio-")


def test_gives_all_chunks_and_the_text(
    platform: FakePlatform, run: Callable[[Story], None]
) -> None:
    """In order, each once, however many; by iteration, as events, as one text."""
    platform.agent = Teller(100, ends=True)

    async def story(client: AgentRuntimeClient) -> None:
        expected = [{"chunk": f"{n} "} for n in range(100)]
        stream = await client.invoke_stream("tpl1", "x")
        assert [chunk async for chunk in stream] == expected
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert len(platform.alive) == 0

        stream = await client.invoke_agent_stream("tpl1", "x")
        assert [event.data async for event in stream.events()][1] == '{"chunk": "1 "}'
        text = await (await client.invoke_stream("tpl1", "x")).text()
        assert text.split() == [str(n) for n in range(100)]

    run(story)


def no_thread(_: Callable[[], object]) -> None:
    raise NoThreadError("the system starts no more")


def test_goes_on_after_no_thread_could_be_started(
    platform: FakePlatform, run: Callable[[Story], None]
) -> None:
    """Whoever waits is told, or tries again; the next one reads on."""
    platform.agent = Teller(2, ends=True)

    async def story(client: AgentRuntimeClient) -> None:
        session = await client.create_session("tpl1")
        stream = await session.invoke_stream("x")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stream._bridge, "start", no_thread)
            with pytest.raises(NoThreadError):
                await anext(stream)
        piece = await asyncio.wait_for(anext(stream), 5 * SLOW)
        assert piece == {"chunk": "0 "}
        await session.close()

    run(story)


def test_reads_a_bounded_number_ahead_and_keeps_no_thread(
    platform: FakePlatform, run: Callable[[Story], None]
) -> None:
    """A slow reader holds up its agent, and nobody else: 70 of them leave threads."""
    platform.agent = Teller(200)

    async def story(client: AgentRuntimeClient) -> None:
        session = await client.create_session("tpl1")
        streams = [await session.invoke_stream("x") for _ in range(70)]
        for stream in streams:
            assert await anext(stream) == {"chunk": "0 "}
        waiting = [len(stream._ahead._pieces) for stream in streams]
        assert max(waiting) <= 16
        assert (await session.ping()).status is not None
        for stream in streams:
            await stream.close()
        await session.close()

    run(story)


def test_a_failed_agent_raises_after_its_chunks(
    platform: FakePlatform, run: Callable[[Story], None]
) -> None:
    """As in the blocking client; afterwards the stream is at its end."""

    def failing(exchange: Exchange) -> None:
        if exchange.request.path != "/invocations":
            echo_agent(exchange)
            return
        exchange.start_stream(invocation_id="inv_1")
        exchange.send(b'id: 1\ndata: "one"\n\nevent: error\ndata: {"error": "no"}\n\n')
        exchange.end_stream()

    platform.agent = failing

    async def story(client: AgentRuntimeClient) -> None:
        stream = await client.invoke_stream("tpl1", "x")
        assert await anext(stream) == "one"
        assert stream.last_event_id == "1"
        with pytest.raises(InvocationError):
            await anext(stream)
        assert stream.invocation_id == "inv_1"
        assert [chunk async for chunk in stream] == []

    run(story)


def test_goes_on_after_an_interruption(
    platform: FakePlatform, run: Callable[[Story], None]
) -> None:
    """By hand, each chunk once; also by another session, from the id that was seen."""

    def cutting(exchange: Exchange) -> None:
        path = exchange.request.path
        if path == "/invocations":
            exchange.start_stream(invocation_id="inv_1")
            exchange.send(b"id: 1\ndata: 1\n\nid: 2\ndata: 2\n\n")
            exchange.cut()
        elif path == "/invocations/inv_1/events":
            exchange.start_stream(invocation_id="inv_1")
            assert exchange.request.headers["last-event-id"] == "2"
            exchange.send(b"id: 3\ndata: 3\n\nevent: end\ndata: {}\n\n")
            exchange.end_stream()
        else:
            echo_agent(exchange)

    platform.agent = cutting

    async def story(client: AgentRuntimeClient) -> None:
        session = await client.create_session("tpl1")
        stream = await session.invoke_stream("x")
        assert [await anext(stream), await anext(stream)] == [1, 2]
        with pytest.raises(StreamInterruptedError):
            await anext(stream)
        assert await (await stream.resume()).text() == ""
        with pytest.raises(ConflictError):
            await stream.resume()
        again = await session.resume_stream("inv_1", stream_id := "2")
        assert [chunk async for chunk in again] == [3]
        assert (stream.last_event_id, stream_id) == ("3", "2")
        assert stream.final == {}

    run(story)


def test_streams_of_a_runtime_carry_their_ids(
    platform: FakePlatform, run: Callable[[Story], None]
) -> None:
    """Each piece, and the stream by subscript; an answer in one piece is a mapping."""

    async def story(client: AgentRuntimeClient) -> None:
        answer = await client.invoke_agent_runtime("tpl1", '{"prompt": "x"}')
        assert answer["status"] == "success"
        platform.agent = Teller(2, ends=True)
        stream = await client.invoke_agent_runtime("tpl1", b"x", "s-1")
        assert isinstance(stream, RuntimeStream)
        assert stream["runtimeSessionId"] == "s-1"
        assert stream["response"] is stream
        ids = {"runtimeSessionId": "s-1", "agentId": "tpl1"}
        first = await anext(stream)
        assert first == {"chunk": '{"chunk": "0 "}', **ids}
        assert [piece async for piece in stream] == [
            {**first, "chunk": '{"chunk": "1 "}'}
        ]
        await stream.close()
        async with await client.invoke_agent_runtime("tpl1", "x", "s-1") as stream:
            assert await anext(stream) == first

    run(story)


async def _leave_by_break(stream: StreamingResponse) -> None:
    async for _ in stream:
        break


async def _leave_by_error(stream: StreamingResponse) -> None:
    async def fail() -> None:
        async for _ in stream:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


async def _leave_by_close(stream: StreamingResponse) -> None:
    seen = []
    async for chunk in stream:
        seen.append(chunk)
        await stream.close()
    assert len(seen) == 1


async def _leave_by_context(stream: StreamingResponse) -> None:
    async with stream:
        assert await anext(stream) == {"chunk": "0 "}


async def _leave_by_time(stream: StreamingResponse) -> None:
    async def read() -> None:
        async for _ in stream:
            pass

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(read(), 0.1)


async def _leave_in_the_body(stream: StreamingResponse) -> None:
    async def read() -> None:
        async for _ in stream:
            await asyncio.sleep(30)

    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(read(), 0.1)


async def _leave_by_cancel(stream: StreamingResponse) -> None:
    await anext(stream)
    assert (await stream.cancel()).state == "unknown"


@pytest.mark.parametrize(
    "leave",
    [
        _leave_by_break,
        _leave_by_error,
        _leave_by_close,
        _leave_by_context,
        _leave_by_time,
        _leave_in_the_body,
        _leave_by_cancel,
    ],
)
def test_leaving_frees_the_thread_and_ends_the_sandbox(
    leave: Callable[[StreamingResponse], Coroutine[Any, Any, None]],
    platform: FakePlatform,
    run: Callable[[Story], None],
) -> None:
    """Within a second, while the stream object itself is still held."""
    teller = platform.agent = Teller(3)

    async def story(client: AgentRuntimeClient) -> None:
        stream = await client.invoke_stream("tpl1", "x")
        await leave(stream)
        left = time.monotonic()
        await until(lambda: client._bridge._calls.busy == 0)
        await until(lambda: platform.alive == [])
        assert time.monotonic() - left < 1.0 * SLOW
        await until(teller.left.is_set)

    run(story)


def test_cancelling_a_silent_read_takes_less_than_a_second(
    platform: FakePlatform, run: Callable[[Story], None]
) -> None:
    """The task is over at once, and its thread is free by then."""
    platform.agent = Teller(1)

    async def story(client: AgentRuntimeClient) -> None:
        stream = await client.invoke_stream("tpl1", "x")
        got: list[object] = []

        async def read() -> None:
            async for chunk in stream:
                got.append(chunk)

        task = asyncio.create_task(read())
        await until(lambda: got)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 1.0 * SLOW
        assert client._bridge._calls.busy == 0

    run(story)


def test_one_that_is_let_go_of_ends(
    platform: FakePlatform, run: Callable[[Story], None]
) -> None:
    """Garbage collection wakes the thread that reads it, which closes it."""
    teller = platform.agent = Teller(1)

    async def story(client: AgentRuntimeClient) -> None:
        stream = await client.invoke_stream("tpl1", "x")
        await anext(stream)
        assert client._bridge._calls.busy == 1
        del stream
        gc.collect()
        await until(lambda: client._bridge._calls.busy == 0)
        await until(lambda: platform.alive == [])
        await until(teller.left.is_set)

    run(story)


def test_one_that_nobody_reads_ends_with_a_warning(
    platform: FakePlatform, run: Callable[[Story], None]
) -> None:
    """As in the blocking client: a stream is read, or closed."""
    platform.agent = Teller(1)

    async def story(client: AgentRuntimeClient) -> None:
        stream = await client.invoke_stream("tpl1", "x")
        held = [stream]
        del stream
        with pytest.warns(ResourceWarning):
            held.clear()
        await until(lambda: platform.alive == [])

    run(story)


def test_a_read_in_another_task_ends_with_an_error(
    platform: FakePlatform, run: Callable[[Story], None]
) -> None:
    """Never with a quiet end, as if the agent had said all."""
    platform.agent = Teller(1)

    async def story(client: AgentRuntimeClient) -> None:
        stream = await client.invoke_stream("tpl1", "x")
        await anext(stream)
        reading = asyncio.create_task(_drain(stream))
        await asyncio.sleep(0.05)
        await stream.close()
        with pytest.raises(StreamClosedError, match="another task"):
            await reading
        with pytest.raises(StopAsyncIteration):
            await anext(stream)

    run(story)


async def _drain(stream: StreamingResponse) -> None:
    async for _ in stream:
        pass


def test_closing_the_client_ends_streams_and_calls(
    platform: FakePlatform, make_client: Make
) -> None:
    """Whoever waits gets `ClientClosedError`, and no thread is left."""
    platform.agent = Teller(1)
    named = readers()

    async def main() -> None:
        client = make_client()
        stream = await client.invoke_stream("tpl1", "x")
        await anext(stream)
        reading = asyncio.create_task(_drain(stream))
        call = asyncio.create_task(client.invoke_agent("tpl1", "x", timeout=30))
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await client.close()
        assert time.monotonic() - began < 5 * SLOW
        outcomes = await asyncio.gather(reading, call, return_exceptions=True)
        assert [type(o).__name__ for o in outcomes] != []
        assert all(isinstance(o, Exception) for o in outcomes)
        with pytest.raises(ClientClosedError):
            await client.invoke_agent("tpl1", "x")
        await client.close()

    asyncio.run(main())
    wait_until(lambda: named() == [])
    assert platform.alive == []
