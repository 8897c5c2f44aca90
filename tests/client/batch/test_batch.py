"""Batches: order, bounds, errors, and no sandbox left behind."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ppio_agent._util.clock import Deadline
from ppio_agent._util.threads import NoThreadError, start_thread
from ppio_agent.client import AgentRuntimeClient, BatchProgress, pool
from ppio_agent.client.batch import BatchPlan
from ppio_agent.client.batch.crew import BatchCrew
from ppio_agent.client.batch.worker import BatchWorker, Ended, Job
from ppio_agent.exceptions import (
    BatchError,
    ClientClosedError,
    InvocationError,
    QuotaExceededError,
    RateLimitError,
    RequestTimeoutError,
    SessionNotFoundError,
    TemplateNotFoundError,
    ValidationError,
)
from ppio_agent.transport import CallScope
from ppio_agent.wire.models import InvocationResponse
from tests.support import SLOW, new_threads, wait_until
from tests.support_platform import (
    LIKE_A_DEAD_SANDBOX,
    Exchange,
    FakePlatform,
    echo_agent,
)

PROMPTS = [str(n) for n in range(20)]


def _number(exchange: Exchange) -> int:
    return int(exchange.request.json()["prompt"])


class TestItems:
    def test_come_in_input_order(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Also if later ones end earlier; each in a sandbox of its own."""

        def answer(exchange: Exchange) -> None:
            threading.Event().wait(0.02 if _number(exchange) % 5 == 0 else 0)

        platform.on("POST", "/inv", answer)
        batch = client.invoke_many("tpl1", PROMPTS, max_workers=4)
        items = list(batch)

        assert [i.index for i in items] == list(range(20))
        assert [i.response and i.response.result["echo"]["prompt"] for i in items] == (
            PROMPTS
        )
        assert len(platform.sandboxes) == 20
        assert platform.alive == []

    def test_come_as_they_end_if_unordered(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """A slow first item holds up nobody; results are sorted all the same."""
        release = threading.Event()

        def answer(exchange: Exchange) -> None:
            if _number(exchange) == 0:
                assert release.wait(10)

        platform.on("POST", "/inv", answer)
        with client.invoke_many(
            "tpl1", ["0", "1", "2"], max_workers=2, ordered=False
        ) as batch:
            first = next(batch)
            release.set()
            rest = list(batch)

        assert first.index == 1
        assert sorted(i.index for i in rest) == [0, 2]

    def test_results_are_in_input_order(self, client: AgentRuntimeClient) -> None:
        """One answer for each request, by its place."""
        results = client.invoke_many("tpl1", PROMPTS, ordered=False).results()

        assert [r.result["echo"]["prompt"] for r in results] == PROMPTS

    def test_a_pool_uses_its_sandboxes_again(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """n sandboxes for all items, one at a time in each, none left."""
        batch = client.invoke_many("tpl1", PROMPTS, sessions=pool(3))
        used = {item.response.sandbox_id for item in batch if item.response}
        batch.close()

        assert len(used) <= 3
        assert len(platform.sandboxes) == 3
        assert platform.alive == []

    def test_a_dead_sandbox_of_a_pool_is_replaced(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The item that met it is run in another one."""

        def answer(exchange: Exchange) -> None:
            sandbox = exchange.sandbox
            if _number(exchange) == 2 and sandbox is platform.sandboxes["sb1"]:
                sandbox.state = "killed"
                platform.killed.append("sb1")
                exchange.reply(502, {"sandboxId": "sb1", "message": "not found"})

        platform.on("POST", "/inv", answer)
        items = list(client.invoke_many("tpl1", PROMPTS[:5], sessions=pool(1)))

        assert [i.error for i in items] == [None] * 5
        assert [i.attempts for i in items] == [1, 1, 2, 1, 1]
        used = [i.response.sandbox_id for i in items if i.response]
        assert used == ["sb1", "sb1", "sb2", "sb2", "sb2"]
        assert platform.alive == []

    def test_a_sandbox_that_may_be_dead_is_replaced(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Where the platform cannot say, one item fails, and none of those after it."""

        def answer(exchange: Exchange) -> None:
            if _number(exchange) and exchange.sandbox is platform.sandboxes["sb1"]:
                exchange.reply(502, {"sandboxId": "sb1", "message": "not found"})

        platform.on("POST", "/inv", answer)
        platform.on("GET", "/sandboxes/sb1", lambda e: e.reply(503, {"code": "busy"}))
        items = list(
            client.invoke_many(
                "tpl1", PROMPTS[:4], sessions=pool(1), return_exceptions=True
            )
        )

        assert [i.index for i in items if i.error] == [1]
        assert list(platform.sandboxes) == ["sb1", "sb2"]

    @pytest.mark.parametrize(("status", "body"), LIKE_A_DEAD_SANDBOX)
    def test_a_sandbox_whose_agent_only_says_so_is_not_dead(
        self,
        client: AgentRuntimeClient,
        platform: FakePlatform,
        status: int,
        body: dict[str, Any],
    ) -> None:
        """The item has run: it fails, and is not run again."""
        platform.on("POST", "/inv", lambda e: e.reply(status, body))
        items = list(
            client.invoke_many(
                "tpl1", PROMPTS[:2], sessions=pool(1), return_exceptions=True
            )
        )

        assert [type(i.error) for i in items] == [SessionNotFoundError] * 2
        assert len(platform.seen("POST", "/inv")) == 2

    def test_input_is_taken_as_it_is_needed(self, client: AgentRuntimeClient) -> None:
        """An endless input and a slow consumer: four a worker are taken ahead."""
        taken = itertools.count()
        seen: list[int] = []

        def endless() -> Iterator[str]:
            while True:
                seen.append(next(taken))
                yield "Hi"

        with client.invoke_many("tpl1", endless(), max_workers=2) as batch:
            wait_until(lambda: len(seen) == 8)
            threading.Event().wait(0.1)
            before = len(seen)
            for _ in range(5):
                next(batch)
            wait_until(lambda: len(seen) == 13)

        assert before == 8

    @pytest.mark.parametrize("ordered", [True, False])
    def test_never_more_is_taken_ahead(
        self, client: AgentRuntimeClient, ordered: bool
    ) -> None:
        """In either mode, at every moment."""
        taken, given, most = 0, 0, 0

        def endless() -> Iterator[str]:
            nonlocal taken, most
            while True:
                taken += 1
                most = max(most, taken - given)
                yield "Hi"

        with client.invoke_many(
            "tpl1", endless(), max_workers=3, ordered=ordered
        ) as batch:
            for _ in range(60):
                given += 1  # before it is given, so never too late
                next(batch)

        assert most <= 12

    def test_no_more_threads_than_items(self, client: AgentRuntimeClient) -> None:
        """However many are allowed."""
        names = new_threads("ppio-client-batch")
        most = 0
        with client.invoke_many("tpl1", ["1", "2", "3"], max_workers=200) as batch:
            for _ in batch:
                most = max(most, len(names()))

        assert most <= 3
        assert names() == []

    def test_input_that_hangs_holds_up_nothing_else(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Items come as they end, and leaving does not wait for it."""
        release = threading.Event()

        def hanging() -> Iterator[str]:
            yield "1"
            yield "2"
            release.wait(30)

        started = time.monotonic()
        with client.invoke_many("tpl1", hanging(), sessions=pool(2)) as batch:
            assert [next(batch).index, next(batch).index] == [0, 1]
        took = time.monotonic() - started
        release.set()

        assert took < 3 * SLOW
        assert platform.alive == []

    def test_hanging_input_ends_at_the_deadline(
        self, client: AgentRuntimeClient
    ) -> None:
        """What it has not given by then does not exist."""
        release = threading.Event()

        def hanging() -> Iterator[str]:
            yield "1"
            release.wait(30)

        batch = client.invoke_many("tpl1", hanging(), deadline=0.5)
        items = list(batch)
        release.set()

        assert [i.error for i in items] == [None]

    def test_waiting_for_one_ends_with_the_scope_of_the_caller(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """As every wait of the client."""
        release = threading.Event()
        platform.on("POST", "/invocations$", lambda _: release.wait(10) and None)
        scope = CallScope()
        batch = client.invoke_many("tpl1", PROMPTS, max_workers=2)

        def end() -> None:
            wait_until(lambda: len(platform.seen("POST", "/invocations$")) == 2)
            scope.abort(ClientClosedError("enough"))

        def wait() -> None:
            with scope.running():
                ender.start()  # not before, or it may end what has not begun
                next(batch)

        ender = threading.Thread(target=end)
        with pytest.raises(ClientClosedError, match="enough"):
            wait()
        release.set()
        ender.join()

        assert platform.alive == []


class Polite:
    """A lock whose holder lets others in before it goes on."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        threading.Event().wait(0.002)


def _nothing(*_: object) -> None:
    pass


def test_one_of_the_workers_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last one that ends its sandbox, also of two that do so together."""
    sweeps: list[object] = []
    together = threading.Barrier(2)

    class Worker(BatchWorker):
        def run(self, job: Job) -> Ended:
            together.wait(10)
            return Ended(job.item(InvocationResponse(result=1)))

        def end(self) -> None:
            together.wait(10)

    monkeypatch.setattr("ppio_agent.client.batch.crew.BatchWorker", Worker)
    supply: Any = SimpleNamespace(kill_leftovers=lambda *, but: sweeps.append(but))
    journal: Any = SimpleNamespace(
        resumed=True, entries={}, recall=_nothing, sync=_nothing, close=_nothing
    )
    plan = BatchPlan(deadline=Deadline.after(None), max_workers=2)
    crew = BatchCrew(supply, ["1", "2"], plan, journal)
    crew._lock = Polite(crew._lock)  # type: ignore[assignment]  # has what is needed
    crew.start()
    assert [crew.next_item().index, crew.next_item().index] == [0, 1]
    crew.stop()
    crew.wait(10)
    assert sweeps == [set(), ()]


class TestErrors:
    def test_the_first_one_is_raised_and_ends_all(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """What runs is aborted, what waits is dropped, sandboxes are killed."""
        release = threading.Event()

        def answer(exchange: Exchange) -> None:
            number = _number(exchange)
            if number == 2:
                exchange.reply(500, {"result": None, "status": "error", "error": "two"})
            elif number > 2:
                release.wait(10)
                exchange.cut()

        platform.on("POST", "/inv", answer)
        batch = client.invoke_many("tpl1", PROMPTS, max_workers=4)
        seen = []
        started = time.monotonic()
        with pytest.raises(InvocationError, match="two"):
            seen.extend(item.index for item in batch)
        took = time.monotonic() - started
        release.set()

        assert seen == [0, 1]
        assert took < 5 * SLOW
        assert platform.alive == []
        assert len(platform.seen("POST", "/inv")) <= 12

    def test_they_can_be_returned(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Every item is yielded, a failed one with its error."""

        def answer(exchange: Exchange) -> None:
            if _number(exchange) % 2:
                exchange.reply(500, {"result": None, "status": "error", "error": "odd"})

        platform.on("POST", "/inv", answer)
        results = client.invoke_many(
            "tpl1", [*PROMPTS[:4], [1]], return_exceptions=True
        ).results()

        kinds = [type(r).__name__ for r in results]
        assert kinds == [
            "InvocationResponse", "InvocationError", "InvocationResponse",
            "InvocationError", "ValidationError",
        ]  # fmt: skip
        assert len(platform.sandboxes) == 4

    def test_a_failing_input_is_raised_after_its_items(
        self, client: AgentRuntimeClient
    ) -> None:
        """What it gave before is not lost."""

        def failing() -> Iterator[str]:
            yield "0"
            raise OSError("the file ended")

        batch = client.invoke_many("tpl1", failing())

        assert next(batch).index == 0
        with pytest.raises(OSError, match="the file ended"):
            next(batch)

    def test_deadline(self, client: AgentRuntimeClient, platform: FakePlatform) -> None:
        """What has not ended by then fails, each item for itself."""
        release = threading.Event()

        def answer(exchange: Exchange) -> None:
            if _number(exchange):
                release.wait(10)
                exchange.cut()

        platform.on("POST", "/inv", answer)
        results = client.invoke_many(
            "tpl1", PROMPTS[:6], max_workers=2, deadline=0.6, return_exceptions=True
        ).results()
        release.set()

        assert [type(r) for r in results[1:]] == [RequestTimeoutError] * 5
        assert platform.alive == []

    def test_ctrl_c_stops_it(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """It is raised soon, and no sandbox is left."""
        release = threading.Event()

        def interrupt(exchange: Exchange) -> None:
            if _number(exchange) == 1:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            release.wait(10)
            exchange.cut()

        platform.on("POST", "/inv", interrupt)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            list(client.invoke_many("tpl1", PROMPTS, max_workers=2))
        took = time.monotonic() - started
        release.set()

        assert took < 10 * SLOW
        assert platform.alive == []

    def test_closing_it_elsewhere_is_told(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Whoever iterates must not take it for the end; later there is nothing."""
        release = threading.Event()
        platform.on("POST", "/invocations$", lambda _: release.wait(10) and None)
        batch = client.invoke_many("tpl1", PROMPTS, max_workers=2)

        def close() -> None:
            wait_until(lambda: len(platform.seen("POST", "/invocations$")) == 2)
            batch.close()

        closer = threading.Thread(target=close)
        closer.start()
        with pytest.raises(BatchError, match="closed before its end"):
            next(batch)
        closer.join()
        release.set()

        assert list(batch) == []
        assert platform.alive == []

    def test_a_forked_child_cannot_go_on_with_it(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """It is told so, and ends nothing of its parent's."""
        with client.invoke_many("tpl1", PROMPTS[:2]) as batch:
            next(batch)
            child = os.fork()
            if child == 0:
                try:
                    batch.close()
                    next(batch)
                except BatchError:
                    os._exit(0)
                finally:
                    os._exit(1)
            status = os.waitpid(child, 0)[1]

            assert os.waitstatus_to_exitcode(status) == 0
            assert next(batch).index == 1

    def test_leaving_it_stops_it(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """A batch that nobody holds any more works no further, and says so."""
        with pytest.warns(ResourceWarning, match="let go of before its end"):
            next(client.invoke_many("tpl1", itertools.repeat("Hi"), max_workers=2))

        wait_until(lambda: not platform.alive and not _batch_threads())

    def test_leaving_it_closes_a_generator(
        self, client: AgentRuntimeClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Which may have a file to close, and may fail at that."""
        closed = threading.Event()

        def endless() -> Iterator[str]:
            try:
                while True:
                    yield "Hi"
            finally:
                closed.set()
                raise OSError("the file is gone")

        requests = endless()
        with client.invoke_many("tpl1", requests, max_workers=2) as batch:
            next(batch)

        assert closed.wait(10)
        wait_until(lambda: "the file is gone" in caplog.text)
        assert list(requests) == []

    @pytest.mark.parametrize("requests", ["Hello", {"prompt": "Hello"}, b"Hello"])
    def test_one_request_is_not_a_batch(
        self, client: AgentRuntimeClient, requests: object
    ) -> None:
        """A str would otherwise be a batch of its letters."""
        with pytest.raises(ValidationError, match="several"):
            client.invoke_many("tpl1", requests)

    def test_bad_arguments(self, client: AgentRuntimeClient) -> None:
        """They are refused before any work begins."""
        with pytest.raises(ValidationError, match=r"pool\(n\)"):
            client.invoke_many("tpl1", PROMPTS, sessions="all")
        with pytest.raises(ValidationError, match=r"pool\(n\)"):
            client.invoke_many("tpl1", PROMPTS, sessions=3)
        with pytest.raises(TemplateNotFoundError):
            client.invoke_many("nope", PROMPTS)
        for bad in (0, True, 1.5, "2"):
            with pytest.raises(ValidationError, match="max_workers has to be"):
                client.invoke_many("tpl1", PROMPTS, max_workers=bad)
            with pytest.raises(ValidationError, match="size has to be"):
                pool(bad)


class TestProgress:
    def test_is_told_from_one_thread(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """The last word says that all is done."""
        told: list[BatchProgress] = []
        threads: set[str] = set()

        def tell(progress: BatchProgress) -> None:
            told.append(progress)
            threads.add(threading.current_thread().name)

        def answer(exchange: Exchange) -> None:
            if _number(exchange) == 3:
                exchange.reply(500, {"result": None, "status": "error", "error": "no"})

        platform.on("POST", "/inv", answer)
        with client.invoke_many(
            "tpl1", PROMPTS, on_progress=tell, return_exceptions=True
        ) as batch:
            batch.results()

        assert threads == {"ppio-client-batch-progress"}
        last = told[-1]
        assert (last.total, last.done, last.failed) == (20, 20, 1)
        assert (last.running, last.eta, last.ended) == (0, 0.0, True)
        assert [p.done for p in told] == sorted(p.done for p in told)

    def test_a_teller_that_fails_is_logged_and_told_on(
        self, client: AgentRuntimeClient, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It does not end the batch, nor the telling."""
        ended: list[bool] = []

        def tell(progress: BatchProgress) -> None:
            ended.append(progress.ended)
            raise KeyError("no bar")

        with client.invoke_many("tpl1", PROMPTS[:3], on_progress=tell) as batch:
            answers = batch.results()

        assert len(answers) == 3
        assert ended[-1]
        assert "progress failed" in caplog.text
        assert "no bar" in caplog.text

    def test_bar_is_silent_without_a_terminal(
        self, client: AgentRuntimeClient, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A log file gets no control characters."""
        client.invoke_many("tpl1", PROMPTS[:3], progress=True).results()

        assert capfd.readouterr().err == ""

    def test_bar_draws_on_a_terminal(
        self,
        client: AgentRuntimeClient,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """It ends complete."""
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        with client.invoke_many("tpl1", PROMPTS[:3], progress=True) as batch:
            batch.results()

        assert "100%" in capsys.readouterr().err


class TestThreads:
    """What a batch does when the system starts no more of them."""

    def test_it_goes_on_with_those_it_has(
        self,
        client: AgentRuntimeClient,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """And says so, once."""
        _allow_threads(monkeypatch, 2)
        items = list(client.invoke_many("tpl1", PROMPTS, max_workers=8))

        assert [i.error for i in items] == [None] * 20
        assert caplog.text.count("goes on with 2 workers") == 1

    def test_without_any_it_cannot_begin(
        self,
        client: AgentRuntimeClient,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        """Nothing is left open: the same call works later."""
        _allow_threads(monkeypatch, 0)
        journal = tmp_path / "batch.jsonl"
        with pytest.raises(NoThreadError):
            client.invoke_many("tpl1", PROMPTS, journal=journal)
        monkeypatch.undo()

        assert len(client.invoke_many("tpl1", PROMPTS, journal=journal).results()) == 20


def _allow_threads(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    started = itertools.count()

    def start(name: str, *rest: Any) -> threading.Thread:
        if next(started) >= most:
            raise NoThreadError(f"the thread {name} cannot be started")
        return start_thread(name, *rest)

    monkeypatch.setattr("ppio_agent.client.batch.crew.start_thread", start)


class TestLimits:
    """What a 429 does: all wait, nobody fails."""

    def test_pauses_all_workers_until_the_time_that_is_named(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Nothing is begun meanwhile; the refused item is run afterwards."""
        refused_at: list[float] = []
        begun_at: list[float] = []

        def answer(exchange: Exchange) -> None:
            begun_at.append(time.monotonic())
            if _number(exchange) == 4 and not refused_at:
                refused_at.append(time.monotonic())
                exchange.reply(429, {"error": "slow down"}, {"Retry-After": "0.6"})

        platform.on("POST", "/invocations$", answer)
        items = list(client.invoke_many("tpl1", PROMPTS, sessions=pool(3)))

        assert [i.error for i in items] == [None] * 20
        assert [i.index for i in items if i.attempts > 1] == [4]
        quiet = max(b - a for a, b in itertools.pairwise(begun_at))
        assert quiet > 0.5
        assert max(begun_at) > refused_at[0] + 0.6

    def test_of_sandboxes_is_what_is_alive(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """More are tried after ten successes each."""
        most = 3
        seen: list[int] = []

        def create(exchange: Exchange) -> None:
            seen.append(len(platform.alive))
            if len(platform.alive) >= most:
                exchange.reply(429, {"code": 429, "message": "too many sandboxes"})

        platform.on("POST", "/sandboxes$", create)
        items = list(client.invoke_many("tpl1", [*PROMPTS, *PROMPTS], max_workers=8))

        assert [i.error for i in items] == [None] * 40
        assert max(seen) <= most + 8
        refused = sum(alive >= most for alive in seen)
        assert 1 <= refused <= 7 + 40 // 10 + 5
        assert platform.alive == []

    def test_leaves_items_to_workers_that_have_a_sandbox(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """A pool that does not come to its size does all the work nevertheless."""
        one = threading.Lock()  # two may come at once

        def create(exchange: Exchange) -> None:
            with one:
                if platform.alive:
                    exchange.reply(429, {"code": 429, "message": "one is enough"})
                else:
                    platform.create(exchange)

        platform.on("POST", "/sandboxes$", create)
        items = list(client.invoke_many("tpl1", PROMPTS, sessions=pool(4)))

        # Another one comes if the first was done with all else while the last item
        # was still being refused a sandbox.
        used = [i.response.sandbox_id for i in items if i.response]
        assert [i.error for i in items] == [None] * 20
        assert used.count("sb1") >= 17

    def test_that_no_waiting_helps_fails_the_item(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """A time beyond reason, and an account without means."""
        answers = iter([(429, {"Retry-After": "9999"}), (402, {})])

        def create(exchange: Exchange) -> None:
            status, headers = next(answers)
            exchange.reply(status, {"code": status, "message": "no"}, headers)

        platform.on("POST", "/sandboxes$", create)
        results = client.invoke_many(
            "tpl1", PROMPTS[:2], max_workers=1, return_exceptions=True
        ).results()

        assert [type(r) for r in results] == [RateLimitError, QuotaExceededError]

    def test_gives_way_to_the_deadline(
        self, client: AgentRuntimeClient, platform: FakePlatform
    ) -> None:
        """Who still waits then fails for it."""
        platform.on("POST", "/sandboxes$", lambda e: e.reply(
            429, {"code": 429, "message": "later"}, {"Retry-After": "60"}))  # fmt: skip
        started = time.monotonic()
        results = client.invoke_many(
            "tpl1", PROMPTS[:6], max_workers=3, deadline=0.5, return_exceptions=True
        ).results()

        assert {type(r) for r in results} == {RequestTimeoutError}
        assert time.monotonic() - started < 3 * SLOW


def test_a_batch_is_as_wide_as_its_pool(
    make_client: Callable[..., AgentRuntimeClient], platform: FakePlatform
) -> None:
    """16 sandboxes run at once: 32 items of 0.2 s take little more than two rounds."""

    def answer(exchange: Exchange) -> None:
        if exchange.request.path == "/invocations":
            threading.Event().wait(0.2)
        echo_agent(exchange)

    platform.agent = answer
    client = make_client(max_connections=4)
    batch = client.invoke_many("tpl1", ["Hi"] * 32, sessions=pool(16))
    started = time.monotonic()
    batch.results()

    assert time.monotonic() - started < 1.5 * SLOW


def _batch_threads() -> list[str]:
    return [
        t.name for t in threading.enumerate() if t.name.startswith("ppio-client-batch")
    ]
