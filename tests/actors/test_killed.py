"""What becomes of actors on a disk whose process is killed, or stands still."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from ppio_agent.actors import ActorId, InProcessActorRuntime, RequestStatus
from tests.support import SLOW, wait_until

from .support import Made, actor
from .support_killed import ACTORS, POISON, runtime_of

_ROUNDS = 20


class Nursery:
    """Starts processes for jobs, and kills them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.actors.support_killed"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        self._lines: SimpleQueue[list[str]] = SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.child = 0
        self.taken: list[tuple[str, str]] = []

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.split())

    def begin(self, job: str, url: str) -> None:
        """Start a process for a job."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{job} {url}\n")
        self._process.stdin.flush()
        self.child = int(self.hear("pid")[0])

    def hear(self, word: str) -> list[str]:
        """Return what follows a word, once it is said; note what is taken meanwhile."""
        while True:
            heard, *rest = self._lines.get(timeout=30.0 * SLOW)
            if heard == "taken":
                self.taken.append((rest[0], rest[1]))
            if heard == word:
                return rest

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        os.kill(self.child, signal.SIGKILL)
        self.hear("dead")

    def close(self) -> None:
        """End everything."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(10.0 * SLOW) == 0
        self._reader.join(10.0 * SLOW)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = Nursery()
    yield made
    made.close()


@contextmanager
def restarted(url: str, **options: Any) -> Iterator[InProcessActorRuntime]:
    """Run what the killed processes left behind."""
    with runtime_of(url, **options) as runtime:
        yield runtime


def state_of(runtime: InProcessActorRuntime, name: str) -> dict[str, Any]:
    """Return the state of all actors of a type as one."""
    whole: dict[str, Any] = {}
    for number in range(ACTORS):
        state = runtime.store.read_state(ActorId(name, str(number)))
        whole |= {f"{number}/{key}": value for key, value in state.items()}
    return whole


def done_in(counted: dict[str, Any]) -> set[str]:
    """Return the keys that name requests which were counted."""
    return {key for key in counted if "/did/" in key}


def test_twenty_kills_lose_and_double_nothing(nursery: Nursery, tmp_path: Path) -> None:
    """Each request that was taken ends, once; what it told others came once.

    A reminder in a file that nobody opened meanwhile comes once for all that it missed,
    and then in its phase.
    """
    clock_url = f"sqlite:///{tmp_path}/clock.db"
    nursery.begin("clock", clock_url)
    nursery.hear("set")
    nursery.kill()
    stopped = time.monotonic()

    url = f"sqlite:///{tmp_path}/load.db"
    chance = random.Random(5)
    tick = threading.Event()
    for _ in range(_ROUNDS):
        nursery.begin("load", url)
        nursery.hear("taken")
        tick.wait(chance.uniform(0.0, 0.25))
        nursery.kill()
    with restarted(url) as runtime:
        began = time.monotonic()
        client = runtime.client()
        ends = {
            message_id: client.get_request(ActorId("count", key), message_id)
            .get_response(10.0 * SLOW)
            .status
            for key, message_id in nursery.taken
        }
        wait_until(
            lambda: (
                runtime.store.pending() == 0
                and len(done_in(state_of(runtime, "count")))
                == len(state_of(runtime, "sink"))
            ),
            timeout=10.0,
        )
        assert time.monotonic() - began < 10.0 * SLOW
        counted, got = state_of(runtime, "count"), state_of(runtime, "sink")
    assert len(ends) > _ROUNDS
    assert RequestStatus.NOT_FOUND not in ends.values()
    done = done_in(counted)
    assert {counted[key] for key in done} == {1}
    ids = {key.rpartition("/")[2] for key in done}
    completed = {i for i, status in ends.items() if status is RequestStatus.COMPLETED}
    assert completed == ids & set(ends)
    assert len(completed) > 0.8 * len(ends)
    totals = sum(value for key, value in counted.items() if key.endswith("/n"))
    assert totals == len(done)
    assert {key.rpartition("/")[2] for key in got} == ids
    assert set(got.values()) == {1}

    wait_until(lambda: time.monotonic() - stopped > 4.2)
    with restarted(clock_url) as runtime:

        def ticks() -> list[dict[str, Any]]:
            state = runtime.store.read_state(ActorId("clock", "1"))
            return state.get("ticks", [])  # type: ignore[no-any-return] # JSON

        def late() -> list[int]:
            return [n for n, tick in enumerate(ticks()[:-1]) if tick["missed"] >= 3]

        wait_until(late, timeout=10.0)
        first, after = ticks()[late()[0] :][:2]
        assert after["due"] - first["due"] == pytest.approx(1.0)
        assert after["missed"] == 0


def test_a_request_that_kills_its_process_is_tried_three_times(
    nursery: Nursery, tmp_path: Path
) -> None:
    """Then it has failed, as a dead letter, and all others go on."""
    url = f"sqlite:///{tmp_path}/poison.db"
    for attempt in (1, 2, 3):
        nursery.begin("poison", url)
        assert nursery.hear("attempt") == [str(attempt)]
        nursery.hear("dead")
    with restarted(url) as runtime:
        client = runtime.client()
        response = client.get_request(POISON, "poison").get_response(10.0 * SLOW)
        assert response.status is RequestStatus.FAILED
        assert response.data["code"] == "crashed"
        (letter,) = runtime.dead_letters()
        assert (letter.reason, letter.attempts) == ("crashed", 3)
        assert client.ask(ActorId("count", "1"), "count").data == 1


def test_a_worker_that_stood_still_cannot_commit(
    nursery: Nursery, tmp_path: Path
) -> None:
    """Another one has taken its actor over meanwhile, and what that did stands."""
    url = f"sqlite:///{tmp_path}/pause.db"
    paused = ActorId("pause", "1")
    nursery.begin("pause", url)
    nursery.hear("begun")
    os.kill(nursery.child, signal.SIGSTOP)
    with restarted(url, lease_ttl=0.6) as runtime:
        handle = runtime.client().get_request(paused, "pause")
        assert handle.result(10.0 * SLOW) == 2
        (tmp_path / "pause.db.go").touch()
        os.kill(nursery.child, signal.SIGCONT)
        assert nursery.hear("answer") == ["2"]
        assert runtime.store.read_state(paused) == {"by": 2}
        assert handle.get_response().data == 2
    nursery.kill()


def test_every_request_ends_though_all_wake_ups_are_lost(tmp_path: Path) -> None:
    """Within three seconds, each."""

    class Deaf:
        def wake(self, actor_id: ActorId, not_before: float | None) -> None:
            """Tell nobody."""

    def echo(context: Any, message: Any) -> Any:
        return message.params

    runtime = InProcessActorRuntime(f"sqlite:///{tmp_path}/deaf.db", placement=Deaf())
    runtime.register_actor_type("t", lambda _: Made(echo))
    with runtime:
        client = runtime.client()
        began = time.monotonic()
        handles = [
            client.send_request(actor(str(key)), "go", {"key": key})
            for key in range(20)
        ]
        assert [handle.result(10.0 * SLOW)["key"] for handle in handles] == [*range(20)]
        assert time.monotonic() - began < 3.0 * SLOW
