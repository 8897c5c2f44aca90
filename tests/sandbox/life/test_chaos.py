"""Sandboxes under random use and random deaths: afterwards nothing is left."""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import requests

from ppio_agent.exceptions import PPIOAgentError
from ppio_agent.sandbox.life.changes import Change
from ppio_agent.sandbox.life.ended import SANDBOX_ROW
from ppio_agent.sandbox.life.live import LiveSandbox
from ppio_agent.sandbox.life.machine import State
from ppio_agent.sandbox.life.options import CreateOptions
from ppio_agent.sandbox.supervisor.tree import MARKER
from ppio_agent.sandbox.zygote import BLANK_ID
from ppio_agent.storage import open_store
from tests.sandbox.agents import write_agent
from tests.sandbox.cloud import Caller, PlatformProcess
from tests.sandbox.rig import PlatformRig
from tests.support import new_threads, wait_until

_THREADS = 16
_OPERATIONS = 10_000
_CHAOS_SECONDS = 5.0
_ANSWERS = {200, 201, 204, 404, 409, 429, 502, 503, 504}
# With 500, of one whose supervisor is killed before it is up.
_START_FAILED = ("did not come up", "could not be started")
_PLATFORM_GONE = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
)

_NEXT = {
    State.RUNNING: {State.PAUSED, State.KILLED},
    State.PAUSED: {State.RUNNING, State.KILLED},
    State.KILLED: set(),
}


class Use:
    """Random operations on a rig; `heard` is what each sandbox told of its states."""

    def __init__(self, rig: PlatformRig) -> None:
        self.rig = rig
        self.heard: list[list[State]] = []
        self.unexpected: list[BaseException] = []

    def run(self, seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(_OPERATIONS // _THREADS):
            try:
                self._step(rng)
            except PPIOAgentError:
                continue
            except BaseException as error:
                self.unexpected.append(error)

    def _step(self, rng: random.Random) -> None:
        tenant = rng.choice(["red", "blue"])
        mine = self.rig.sandboxes.list_sandboxes(tenant=tenant)
        if not mine or rng.random() < 0.2:
            self._create(rng, tenant)
            return
        sandbox = rng.choice(mine)
        what = rng.choice(
            ["pause", "connect", "wake", "kill", "expire", "idle", "lose"]
        )
        if what == "connect":
            sandbox.connect(rng.randint(1, 9))
        elif what == "kill":
            self.rig.sandboxes.kill(sandbox.id)
        elif what == "expire":
            sandbox.set_timeout(0)
        elif what == "idle":
            sandbox.traffic_began()
            sandbox.traffic_ended()
        elif what == "lose":
            self._lose(sandbox)
        else:
            getattr(sandbox, what)()

    def _create(self, rng: random.Random, tenant: str) -> None:
        options = CreateOptions(
            pauses=rng.random() < 0.3, idle_timeout=rng.choice([0.0, 0.0, 0.01])
        )
        sandbox = self.rig.sandboxes.create(options, tenant=tenant)
        states: list[State] = []

        def note(change: Change) -> None:
            if change.kind == "state":
                states.append(change.state)

        self.heard.append(states)
        sandbox.subscribe(note)

    def _lose(self, sandbox: LiveSandbox) -> None:
        for fake in list(self.rig.backend.started):
            if fake.spec.sandbox_id == sandbox.id and fake.alive:
                fake.lose()


def test_ten_thousand_random_operations_from_many_threads_leak_nothing(
    tmp_path: Path,
) -> None:
    """Acceptance 11: no descriptor, thread, folder, row or slot; all are told to end.

    The backend has no processes; those of real ones are looked for below.
    """
    threads, descriptors = new_threads("ppio-"), len(os.listdir("/proc/self/fd"))
    rig = PlatformRig(
        tmp_path, agent=False, max_sandboxes_per_tenant=12, max_sandboxes=20
    )
    use = Use(rig)
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(use.run, range(_THREADS)))
    rows = rig.store.scan
    rig.sandboxes.close(5.0)

    assert use.unexpected == []
    assert list((tmp_path / "sandboxes").iterdir()) == []
    assert rows(SANDBOX_ROW) == ()
    assert rig.sandboxes._roster.everyone() == []
    assert all(not fake.alive for fake in rig.backend.started)
    for states in use.heard:
        assert all(after in _NEXT[before] for before, after in _pairs(states)), states
    rig.store.close()
    wait_until(lambda: threads() == [])
    assert len(os.listdir("/proc/self/fd")) <= descriptors


def _pairs(states: list[State]) -> Iterator[tuple[State, State]]:
    return itertools.pairwise(states)


class Client(Caller):
    """Uses a platform that may be killed at any moment, from a thread of its own."""

    def __init__(self, platform: PlatformProcess, seed: int) -> None:
        super().__init__()
        self._platform = platform
        self._rng = random.Random(seed)
        self.http.hooks["response"].append(self._check)

    @property
    def url(self) -> str:
        return self._platform.url

    def run(self, stop: threading.Event) -> None:
        with self.http:
            while not stop.wait(0.01):
                with suppress(*_PLATFORM_GONE):
                    self._step()

    @staticmethod
    def _check(response: requests.Response, *_: object, **__: object) -> None:
        """Refuse answers that whoever asks of what is just killed need not expect."""
        failed = any(words in response.text for words in _START_FAILED)
        known = response.status_code in _ANSWERS or failed
        assert known, f"{response.request.path_url}: {response.text}"

    def _step(self) -> None:
        listed = self.ask("GET", "/v2/sandboxes").json()
        rng = self._rng
        if len(listed) < 3 or rng.random() < 0.1:
            body = {"templateID": "echo", "timeout": 60, "autoPause": True}
            self.ask("POST", "/sandboxes", body)
            return
        path = f"/sandboxes/{rng.choice(listed)['sandboxID']}"
        what = rng.choice(["pause", "connect", "ping", "ping", "delete"])
        if what == "ping":
            self.agent(path.rpartition("/")[2])
        elif what == "delete":
            self.ask("DELETE", path)
        else:
            self.ask("POST", f"{path}/{what}")


def _processes(data: Path) -> list[psutil.Process]:
    """Return the processes of all sandboxes below a data directory, known or not."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            place = [process.cwd(), *process.environ().values()]
            marked = any(text.startswith(str(data / "sandboxes")) for text in place)
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _kill_one(platform: PlatformProcess, rng: random.Random) -> str:
    """Kill something; return what."""
    what = rng.choice(["platform", "supervisor", "zygote", "agent", "agent"])
    if what == "platform":
        platform.kill()
        platform.start()
        return what
    sandboxes = _processes(platform.data)
    pids = {process.pid for process in sandboxes}
    with suppress(psutil.Error):
        if what == "zygote":
            below = psutil.Process(platform.pid).children(recursive=True)
            targets = [p for p in below if p.environ().get(MARKER) == BLANK_ID]
        else:
            is_agent = what == "agent"
            targets = [p for p in sandboxes if (p.ppid() in pids) == is_agent]
        if targets:
            rng.choice(targets).send_signal(signal.SIGKILL)
            return what
    return "nothing"


@contextmanager
def _set_at_end(event: threading.Event) -> Iterator[None]:
    try:
        yield
    finally:
        event.set()


@pytest.mark.slow
def test_whatever_dies_at_random_nothing_is_left(tmp_path: Path) -> None:
    """Platform, supervisors, zygote and agents are killed while clients go on."""
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")  # to repeat a failure
    rng = random.Random(seed)
    agent = write_agent(tmp_path, "echo")
    platform = PlatformProcess(tmp_path, agent, backend="process", orphan_grace=5)
    platform.start()
    stop = threading.Event()
    done: list[str] = []
    try:
        with ThreadPoolExecutor(3) as pool, _set_at_end(stop):
            clients = [
                pool.submit(Client(platform, rng.getrandbits(32)).run, stop)
                for _ in range(3)
            ]
            end = time.monotonic() + _CHAOS_SECONDS
            while time.monotonic() < end:
                stop.wait(rng.uniform(0.0, 0.5))
                done.append(_kill_one(platform, rng))
        print("killed", done)
        for client in clients:
            client.result()
        _check_that_it_still_works_and_ends(platform)
    finally:
        platform.discard()
        for process in _processes(platform.data):
            process.kill()


def _check_that_it_still_works_and_ends(platform: PlatformProcess) -> None:
    sandbox_id = platform.create("echo")
    assert platform.agent(sandbox_id).status_code == 200
    for listed in platform.ask("GET", "/v2/sandboxes").json():
        platform.ask("DELETE", f"/sandboxes/{listed['sandboxID']}")
    wait_until(
        lambda: _processes(platform.data) == [],
        timeout=35,
        what=str(_processes(platform.data)),
    )
    status = platform.ask("GET", "/platform/v1/status").json()
    assert sum(status["sandboxes"].values()) == 0
    assert list((platform.data / "sandboxes").iterdir()) == []
    _check_descriptors_and_threads(platform)
    sockets = Path((platform.data / "sockets").read_text())
    platform.close()

    assert not sockets.exists()
    store = open_store(f"sqlite:///{platform.data / 'platform.db'}")
    assert store.scan(SANDBOX_ROW) == ()
    store.close()


def _check_descriptors_and_threads(platform: PlatformProcess) -> None:
    """They do not grow with the sandboxes that come and go."""
    process = psutil.Process(platform.pid)

    def use() -> tuple[int, int]:
        for _ in range(4):
            sandbox_id = platform.create("echo")
            platform.agent(sandbox_id)
            platform.ask("DELETE", f"/sandboxes/{sandbox_id}")
        return process.num_fds(), process.num_threads()

    descriptors, threads = use()

    def steady() -> bool:
        now = use()
        return now[0] <= descriptors and now[1] <= threads

    wait_until(steady, timeout=10, what="descriptors and threads of the platform")
