"""One call of an agent: its thread, its end, and what it gives on the way."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from ppio_agent._util.threads import PoolSaturatedError, WorkerPool
from ppio_agent.agent import (
    Chunk,
    Invocation,
    InvocationState,
    RequestContext,
    current_context,
)
from ppio_agent.agent.progress import Step
from ppio_agent.exceptions import (
    InvocationCancelledError,
    InvocationError,
    InvocationTimeoutError,
    SerializationError,
    ServerBusyError,
    ValidationError,
)
from tests.agent.support import make_context, make_invocation, pool_of
from tests.support import SLOW, wait_until

S = InvocationState


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    with pool_of() as pool:
        yield pool


class Gate:
    """A handler's place to stand, whatever it is told."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def stand(self) -> None:
        self.reached.set()
        assert self.opened.wait(10)


def started(agent: Any, pool: WorkerPool, **options: Any) -> Invocation:
    invocation = make_invocation(agent, **options)
    invocation.start(pool)
    return invocation


async def async_echo(request: Any) -> Any:
    await asyncio.sleep(0)
    return request


def test_a_value_is_returned() -> None:
    """In the calling thread."""
    invocation = make_invocation(lambda request: [request, threading.get_ident()])
    invocation.run()
    assert invocation.result() == [{"n": 1}, threading.get_ident()]
    assert invocation.state is S.SUCCEEDED
    assert invocation.confirmed


def test_an_async_handler_runs_on_the_shared_loop(pool: WorkerPool) -> None:
    """All of them on one thread."""

    async def agent(request: Any) -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    names = {started(agent, pool).result(5) for _ in range(3)}
    assert names == {"ppio-loop"}


def test_an_invocation_has_one_thread_for_its_whole_life(pool: WorkerPool) -> None:
    """The call, every step, and `finally`."""
    names = []

    def agent(request: Any) -> Iterator[int]:
        try:
            for n in range(3):
                names.append(threading.current_thread().name)
                yield n
        finally:
            names.append(threading.current_thread().name)

    assert started(agent, pool).result(5) == [0, 1, 2]
    assert len(names) == 4
    assert len(set(names)) == 1
    assert names[0].startswith("ppio-invoke-")


@pytest.mark.parametrize(
    ("items", "expected"), [("ab", "ab"), (["a", 1], ["a", 1]), ([], "")]
)
def test_the_result_of_a_stream_is_all_of_it(items: Any, expected: Any) -> None:
    """One text if all chunks are texts."""
    invocation = make_invocation(lambda _: iter(items))
    invocation.run()
    assert invocation.result() == expected
    assert invocation.record().stream


def test_a_result_that_is_too_much_is_not_kept() -> None:
    """The record says so."""
    invocation = make_invocation(lambda _: iter("abcdef"), collect_bytes=10)
    invocation.run()
    assert invocation.result() is None
    assert invocation.record().result_truncated


def test_chunks_come_as_they_are_made(pool: WorkerPool) -> None:
    """Numbered, with what the handler gave them."""
    gate = Gate()

    def agent(request: Any) -> Iterator[Any]:
        yield "a"
        gate.stand()
        yield Chunk({"t": 1}, event="tool", id="x", retry=0.5)

    invocation = started(agent, pool)
    chunks = invocation.chunks()
    assert next(chunks) == Chunk("a", seq=1)
    gate.opened.set()
    last = Chunk({"t": 1}, event="tool", id="x", retry=0.5, seq=2)
    assert list(chunks) == [last]
    assert list(invocation.chunks(after=1)) == [last]
    assert invocation.result() == ["a", {"t": 1}]


def test_a_plain_value_is_read_as_one_chunk(pool: WorkerPool) -> None:
    """By a reader that came before its end, and by one after it."""
    gate = Gate()

    def agent(request: Any) -> int:
        gate.stand()
        return 7

    invocation = started(agent, pool)
    early = invocation.chunks()
    gate.opened.set()
    assert list(early) == [Chunk(7, seq=1)]
    other = make_invocation(lambda _: 7)
    other.run()
    assert list(other.chunks()) == [Chunk(7, seq=1)]


def test_an_async_generator_streams(pool: WorkerPool) -> None:
    """Further than its thread is ahead of the reader, and in order."""

    async def agent(request: Any) -> AsyncIterator[int]:
        for n in range(500):
            yield n

    invocation = make_invocation(agent)
    chunks = invocation.chunks()
    invocation.start(pool)
    assert [chunk.data for chunk in chunks] == list(range(500))


def test_a_reserved_place_lets_no_chunk_be_missed(pool: WorkerPool) -> None:
    """However late the first reader looks, and whether the handler streams or not."""

    def agent(request: Any) -> Any:
        return iter(range(5000))

    invocation = started(agent, pool, reserve=True)
    assert invocation.progress.wait(Step.STREAMS | Step.OVER, 5)
    wait_until(lambda: invocation.ring.last == 256)
    with invocation.take_reader() as reader:
        after = 0
        while entries := reader.read(after, 5):
            assert entries[0].seq == after + 1
            after = entries[-1].seq
    assert after == 5001
    plain = started(lambda _: 1, pool, reserve=True)
    plain.wait(5)
    assert len(plain.take_reader().read(0)) == 2


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()]
)
@pytest.mark.parametrize("is_async", [False, True])
def test_whatever_user_code_raises_is_its_failure(
    error: BaseException,
    is_async: bool,
    pool: WorkerPool,
) -> None:
    """`SystemExit` too; the loop and the pool live on."""

    def agent(request: Any) -> None:
        raise error

    async def async_agent(request: Any) -> None:
        raise error

    invocation = started(async_agent if is_async else agent, pool)
    with pytest.raises(type(error)) as caught:
        invocation.result(5)
    assert caught.value is error
    assert invocation.state is S.FAILED
    assert started(async_echo, pool).result(5) == {"n": 1}


def test_a_result_without_json_form_is_a_failure() -> None:
    """With the place in it."""
    invocation = make_invocation(lambda _: {"a": [b"x"]})
    invocation.run()
    with pytest.raises(SerializationError) as caught:
        invocation.result()
    assert caught.value.path == "$.a[0]"


def test_a_bad_chunk_fails_the_stream_where_it_is() -> None:
    """What came before it stays; the generator is closed."""
    closed = []

    def agent(request: Any) -> Iterator[Any]:
        try:
            yield 1
            yield 2
            yield object()
        finally:
            closed.append(True)

    invocation = make_invocation(agent)
    invocation.run()
    chunks = invocation.chunks()
    assert [next(chunks).data, next(chunks).data] == [1, 2]
    with pytest.raises(SerializationError, match=r"^chunk 3: "):
        next(chunks)
    assert closed == [True]
    kinds = [entry.kind for entry in invocation.ring.read()]
    assert kinds == ["chunk", "chunk", "error", "end"]


def test_a_chunk_above_the_ring_fails_the_stream() -> None:
    """It could not be replayed."""
    invocation = make_invocation(lambda _: iter(["x" * 1_048_576]))
    invocation.run()
    with pytest.raises(InvocationError, match="chunk 1 has"):
        invocation.result()


def test_null_is_refused_before_anything_exists() -> None:
    """There is no invocation of nothing."""
    with pytest.raises(ValidationError):
        Invocation(make_invocation(async_echo).handler, None, make_context())


def test_a_cancelled_sleep_ends_the_invocation(pool: WorkerPool) -> None:
    """The second request changes nothing."""
    invocation = started(lambda _, context: context.sleep(60), pool)
    invocation.progress.wait(Step.REACHED | Step.OVER, 5)
    assert invocation.cancel()
    assert not invocation.cancel("shutdown")
    with pytest.raises(InvocationCancelledError, match=r"\(client\)"):
        invocation.result(5)
    record = invocation.record()
    assert (record.state, record.confirmed) == (S.CANCELLED, True)
    assert record.cancel_reason == "client"


def test_a_cancel_closes_a_generator_that_waits_for_its_reader(
    pool: WorkerPool,
) -> None:
    """It stands at a `yield`, so it can be closed at once."""
    closed = threading.Event()

    def agent(request: Any) -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    invocation = make_invocation(agent)
    with invocation.ring.attach():
        invocation.start(pool)
        wait_until(lambda: invocation.ring.last == 256)
        invocation.cancel()
        assert closed.wait(5)
    assert invocation.wait(5)
    assert invocation.state is S.CANCELLED


async def async_sleeper(request: Any) -> None:
    await asyncio.sleep(60)


async def async_stream(request: Any) -> AsyncIterator[int]:
    yield 1
    await asyncio.sleep(60)


async def async_endless(request: Any) -> AsyncIterator[int]:
    while True:
        yield 1


@pytest.mark.parametrize("agent", [async_sleeper, async_stream, async_endless])
def test_a_cancel_reaches_async_code(agent: Any, pool: WorkerPool) -> None:
    """At an await, and while it waits for room."""
    invocation = started(agent, pool)
    invocation.progress.wait(Step.REACHED | Step.OVER, 5)
    assert invocation.cancel("disconnect")
    assert invocation.wait(5)
    assert (invocation.state, invocation.confirmed) == (S.CANCELLED, True)


def test_a_pending_invocation_never_starts_after_a_cancel() -> None:
    """It is over at once."""
    gate, called = Gate(), []
    with pool_of(threads=1) as pool:
        first = started(lambda _: gate.stand(), pool)
        second = started(lambda _: called.append(1), pool)
        assert second.state is S.PENDING
        assert second.cancel()
        assert (second.state, second.confirmed) == (S.CANCELLED, True)
        gate.opened.set()
        assert first.wait(5)
    assert called == []


def test_a_pool_without_room_refuses() -> None:
    """The invocation may be told why, and is then over."""
    gate = Gate()
    with pool_of(threads=1, waiting=0) as pool:
        started(lambda _: gate.stand(), pool)
        second = make_invocation(lambda _: 1)
        with pytest.raises(PoolSaturatedError):
            second.start(pool)
        assert second.refuse(ServerBusyError("all slots are taken"))
        with pytest.raises(ServerBusyError):
            second.result(0)
        gate.opened.set()


def test_code_that_ignores_a_cancel_counts_as_cancelled_after_the_grace(
    pool: WorkerPool,
) -> None:
    """Not as ended: that is confirmed when it has."""
    gate = Gate()
    invocation = started(lambda _: gate.stand(), pool, cancel_grace=0.05)
    gate.reached.wait(5)
    invocation.cancel()
    assert invocation.state is S.CANCELLING
    assert invocation.wait(5)
    assert (invocation.state, invocation.confirmed) == (S.CANCELLED, False)
    gate.opened.set()
    assert invocation.progress.wait(Step.SETTLED, 5)
    assert (invocation.state, invocation.record().late) == (S.CANCELLED, True)


def test_a_cancel_that_comes_too_late_changes_nothing(pool: WorkerPool) -> None:
    """User code returned: that is the outcome."""
    gate = Gate()

    def agent(request: Any) -> str:
        gate.stand()
        return "done"

    invocation = started(agent, pool)
    gate.reached.wait(5)
    assert invocation.cancel()
    gate.opened.set()
    assert invocation.result(5) == "done"
    assert not invocation.cancel()


def test_the_deadline_decides_not_the_handler(pool: WorkerPool) -> None:
    """A late result is dropped, and said to be late."""
    gate = Gate()

    def agent(request: Any) -> str:
        gate.stand()
        return "too late"

    invocation = started(agent, pool, context=make_context(timeout=0.1 * SLOW))
    with pytest.raises(InvocationTimeoutError):
        invocation.result(5)
    record = invocation.record()
    assert (record.state, record.confirmed) == (S.TIMED_OUT, False)
    assert invocation.context.cancelled.reason == "deadline"
    gate.opened.set()
    assert invocation.progress.wait(Step.SETTLED, 5)
    record = invocation.record()
    assert (record.state, record.late, record.result) == (S.TIMED_OUT, True, None)


def test_a_stream_past_its_deadline_ends_for_its_reader(pool: WorkerPool) -> None:
    """With an error and an end, while user code still stands somewhere."""
    gate = Gate()

    def agent(request: Any) -> Iterator[int]:
        yield 1
        gate.stand()
        yield 2

    invocation = started(agent, pool, context=make_context(timeout=0.1))
    chunks = invocation.chunks()
    assert next(chunks).data == 1
    with pytest.raises(InvocationTimeoutError):
        next(chunks)
    gate.opened.set()
    assert invocation.progress.wait(Step.SETTLED, 5)
    assert [entry.kind for entry in invocation.ring.read()] == ["chunk", "error", "end"]


def test_a_run_in_the_callers_thread_has_its_deadline_too() -> None:
    """`check` sees it, and the state says so."""

    def agent(request: Any, context: RequestContext) -> None:
        context.sleep(60)

    invocation = make_invocation(agent, context=make_context(timeout=0.02))
    invocation.run()
    assert invocation.state is S.TIMED_OUT


def test_a_shutdown_is_told_as_one_that_may_be_tried_again(pool: WorkerPool) -> None:
    """503, where a cancel by the client is 499."""
    invocation = started(lambda _, context: context.sleep(60), pool)
    invocation.progress.wait(Step.REACHED | Step.OVER, 5)
    invocation.cancel("shutdown")
    with pytest.raises(InvocationCancelledError) as caught:
        invocation.result(5)
    error = caught.value
    assert (error.code, error.http_status, error.retryable) == (
        "server_draining",
        503,
        True,
    )


def test_what_runs_around_the_handler_runs_on_its_thread(pool: WorkerPool) -> None:
    """It may change payload and outcome, and may refuse."""

    def around(reach: Callable[[Any], Any], payload: Any) -> Any:
        assert current_context() is not None
        return [threading.current_thread().name, reach({"n": payload["n"] + 1})]

    def agent(request: Any) -> Any:
        return [threading.current_thread().name, request]

    outer, (inner, request) = started(agent, pool, around=around).result(5)
    assert outer == inner
    assert request == {"n": 2}


def test_opening_is_told_in_steps(pool: WorkerPool) -> None:
    """The thread began; the handler was reached; it is known to stream."""
    before, inside, returned = Gate(), Gate(), Gate()

    def around(reach: Callable[[Any], Any], payload: Any) -> Any:
        before.stand()
        outcome = reach(payload)
        returned.stand()
        return outcome

    def agent(request: Any) -> Any:
        inside.stand()
        return iter("ab")

    invocation = started(agent, pool, around=around)
    assert invocation.progress.wait(Step.STARTED | Step.OVER, 5)
    assert not invocation.progress.wait(Step.REACHED | Step.OVER, 0.01)
    before.opened.set()
    assert invocation.progress.wait(Step.REACHED | Step.OVER, 5)
    inside.opened.set()
    returned.reached.wait(5)
    assert not invocation.progress.wait(Step.STREAMS | Step.OVER, 0.01)
    returned.opened.set()
    assert invocation.progress.wait(Step.STREAMS | Step.OVER, 5)
    assert invocation.result(5) == "ab"


def test_waiting_for_a_result_may_end_without_one(pool: WorkerPool) -> None:
    """The invocation goes on."""
    gate = Gate()
    invocation = started(lambda _: gate.stand(), pool)
    with pytest.raises(TimeoutError):
        invocation.result(0.01)
    assert invocation.state is S.RUNNING
    gate.opened.set()


def test_who_waits_finds_the_owner_told(pool: WorkerPool) -> None:
    """`on_settled` has run before `wait` returns, and runs once."""
    told: list[Invocation] = []
    for _ in range(50):
        invocation = started(lambda _: 1, pool, on_settled=told.append)
        invocation.wait(5)
        assert told[-1] is invocation
    assert len(told) == 50


token: contextvars.ContextVar[str] = contextvars.ContextVar("token", default="unset")


def sync_steps(request: Any) -> Iterator[str]:
    token.set("mine")
    yield token.get()
    yield token.get()


async def async_steps(request: Any) -> AsyncIterator[str]:
    token.set("mine")
    yield token.get()
    await asyncio.sleep(0)
    yield token.get()


@pytest.mark.parametrize("agent", [sync_steps, async_steps])
def test_a_context_variable_lasts_over_a_yield(agent: Any, pool: WorkerPool) -> None:
    """And is seen by nobody else."""
    assert started(agent, pool).result(5) == "minemine"
    assert started(lambda _: token.get(), pool).result(5) == "unset"
    assert token.get() == "unset"


def test_what_async_code_sets_is_seen_around_it(pool: WorkerPool) -> None:
    """Chain and handler share their variables, sync or async."""

    async def agent(request: Any) -> str:
        seen = token.get()
        token.set("inner")
        return seen

    def around(reach: Callable[[Any], Any], payload: Any) -> Any:
        token.set("outer")
        return [reach(payload), token.get()]

    assert started(agent, pool, around=around).result(5) == ["outer", "inner"]


def test_a_forgotten_value_is_read_from_its_json() -> None:
    """Until then the result is the very object that the handler returned."""
    value = {"a": (1, 2)}
    invocation = make_invocation(lambda _: value)
    invocation.run()
    assert invocation.result() is value
    with_value = invocation.size
    invocation.forget_value()
    assert invocation.result() == {"a": [1, 2]}
    assert invocation.size == with_value // 2 == len(b'{"a":[1,2]}')


def test_the_kept_result_of_a_stream_counts() -> None:
    """Besides its chunks in the ring."""
    invocation = make_invocation(lambda _: iter(["a" * 98]))
    invocation.run()
    assert invocation.size >= 200


def test_a_stream_that_failed_has_no_result_to_keep() -> None:
    """What came of it is in its ring."""

    def agent(_: Any) -> Iterator[str]:
        yield "a" * 1000
        raise ValueError("no")

    invocation = make_invocation(agent)
    invocation.run()
    assert invocation.size < 1500
    assert invocation.record().result is None
    assert not invocation.record().result_truncated


def test_a_settled_invocation_lets_go_of_its_payload() -> None:
    """It is kept for ten minutes; what only user code needed is not."""
    payload = {"n": 1}
    invocation = make_invocation(lambda _: 1, payload)
    invocation.run()
    assert invocation._payload == {}
    assert invocation.context.wrap(lambda: 1)() == 1
