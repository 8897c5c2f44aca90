"""After a crash what still lives goes on, what does not is buried, and nothing stays."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from ppio_agent._util.clock import utc_now
from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import SandboxLimitError
from ppio_agent.sandbox.backends.base import AgentStatus
from ppio_agent.sandbox.life.ended import SANDBOX_ROW, EndedLogs
from ppio_agent.sandbox.life.live import LiveSandbox
from ppio_agent.sandbox.life.machine import EndReason, State
from ppio_agent.sandbox.life.options import CreateOptions
from ppio_agent.sandbox.life.recovery import kill_marked
from ppio_agent.sandbox.life.rows import SandboxRow
from ppio_agent.sandbox.supervisor import tree
from ppio_agent.storage import Document, DocumentStore, Put, open_store
from tests.sandbox.fakes import FakeClock, FakeSandbox
from tests.sandbox.rig import PlatformRig
from tests.support import wait_until

ECHO = CreateOptions(template="echo", timeout=100)


class Crash:
    """A platform that crashes, and the next one on the same folder and store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = open_store("memory://")
        self.first = self._rig()
        self.rigs = [self.first]

    def _rig(self, **more: Any) -> PlatformRig:
        return PlatformRig(self.folder, store=self.store, **more)

    def restart(self, **settings: Any) -> PlatformRig:
        left = self.rigs[-1].crash()
        self.rigs.append(self._rig(left=left, **settings))
        return self.rigs[-1]

    def close(self) -> None:
        self.rigs[-1].sandboxes.close(5.0)
        self.store.close()


@pytest.fixture
def crash(tmp_path: Path) -> Iterator[Crash]:
    made = Crash(tmp_path)
    yield made
    made.close()


def _rewrite(store: DocumentStore, sandbox: LiveSandbox, **changes: Any) -> None:
    """Change a row, as if the crash had come at another instant."""
    document = store.get(SANDBOX_ROW, sandbox.id)
    assert document is not None
    store.write(Put(SANDBOX_ROW, sandbox.id, {**document.body, **changes}))


def _fake(rig: PlatformRig, sandbox: LiveSandbox) -> FakeSandbox:
    return next(s for s in rig.backend.started if s.spec.sandbox_id == sandbox.id)


def test_a_sandbox_goes_on_as_it_was(crash: Crash) -> None:
    """Same id, owner, tokens, options and time; its environment is in no row."""
    options = CreateOptions(
        template="echo",
        timeout=100,
        metadata={"k": "v"},
        env={"SECRET": "s3cret"},
        public_traffic=False,
        auto_resume=True,
        pauses=True,
    )
    before = crash.first.sandboxes.create(options, tenant="red")
    before.set_timeout(77)
    assert "s3cret" not in str(crash.store.scan(SANDBOX_ROW))

    rig = crash.restart()

    after = rig.sandboxes.get(before.id, tenant="red")
    assert after is not before
    assert after.identity == attrs.evolve(
        before.identity,
        options=attrs.evolve(options, env={}),
        orphan_grace=after.identity.orphan_grace,
    )
    assert abs(after.life.end_at - before.life.end_at) < timedelta(milliseconds=5)
    assert after.life.started_at - before.life.started_at < timedelta(milliseconds=1)
    assert (after.life.state, after.life.pauses) == (State.RUNNING, True)
    token = before.identity.access_token or ""
    assert rig.sandboxes.owner_of(token) == before.id
    assert _fake(rig, after).log == ["adopt"]


def test_its_agent_and_its_loss_are_told_to_the_new_platform(crash: Crash) -> None:
    before = crash.first.sandboxes.create(ECHO, tenant="red")
    rig = crash.restart()
    after = rig.sandboxes.get(before.id)

    _fake(rig, after).report(AgentStatus(phase="exited", exit_code=3))
    assert after.agent.exit_code == 3
    _fake(rig, after).lose()
    assert after.ended.wait(5)
    assert after.life.reason is EndReason.CRASHED
    assert crash.store.scan(SANDBOX_ROW) == ()


def test_a_paused_one_stays_paused_and_can_be_resumed(crash: Crash) -> None:
    before = crash.first.sandboxes.create(ECHO, tenant="red")
    before.pause()
    rig = crash.restart()
    after = rig.sandboxes.get(before.id)

    assert after.life.state is State.PAUSED
    assert abs(after.life.end_at - before.life.end_at) < timedelta(milliseconds=5)
    assert after.connect(30) is True
    assert _fake(rig, after).log == ["pause", "adopt", "resume"]


@pytest.mark.parametrize(
    ("paused", "left"), [(True, 86400), (False, 100)], ids=["paused", "resumed"]
)
def test_a_crash_amid_a_transition_is_settled_by_the_sandbox(
    crash: Crash, *, paused: bool, left: int
) -> None:
    """It was frozen, or thawed, and the row says otherwise: the sandbox is right."""
    before = crash.first.sandboxes.create(ECHO, tenant="red")
    if paused:
        before.pause()
    _rewrite(crash.store, before, state="running" if paused else "paused")
    rig = crash.restart()

    life = rig.sandboxes.get(before.id).life
    assert life.state is (State.PAUSED if paused else State.RUNNING)
    lasts = (life.end_at - utc_now()).total_seconds()
    assert lasts == pytest.approx(left, abs=2)
    row = SandboxRow.parse(crash.store.scan(SANDBOX_ROW)[0].body)
    assert row.state is life.state


@pytest.mark.parametrize("pauses", [False, True])
def test_one_whose_time_has_passed_ends_by_its_rule(
    crash: Crash, *, pauses: bool
) -> None:
    before = crash.first.sandboxes.create(
        attrs.evolve(ECHO, pauses=pauses), tenant="red"
    )
    _rewrite(crash.store, before, end_at=utc_now() - timedelta(seconds=5))
    rig = crash.restart()

    if pauses:
        after = rig.sandboxes.get(before.id)
        wait_until(lambda: after.life.state is State.PAUSED)
    else:
        wait_until(lambda: rig.sandboxes.list_sandboxes() == [])
        wait_until(lambda: crash.store.scan(SANDBOX_ROW) == ())
        ended = crash.store.get("ended", before.id)
        assert ended is not None
        assert ended.body["reason"] == "timeout"


def test_what_does_not_answer_is_buried_with_its_log_kept(crash: Crash) -> None:
    before = crash.first.sandboxes.create(ECHO, tenant="red")
    fake = _fake(crash.first, before)
    (fake.spec.root / "logs" / "agent.log").write_text("last words")
    fake.alive = False
    rig = crash.restart()

    assert rig.sandboxes.list_sandboxes() == []
    assert crash.store.scan(SANDBOX_ROW) == ()
    assert list((crash.folder / "sandboxes").iterdir()) == []
    logs = rig.sandboxes.logs_of(before.id, tenant="red")
    assert (logs / "agent.log").read_text() == "last words"
    ended = crash.store.get("ended", before.id)
    assert ended is not None
    assert ended.body["reason"] == "crashed"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"tenant": "red"},
        {"tenant": "red", "template_id": "t", "build_id": "b"},
        {"tenant": 7, "state": "running", "options": []},
    ],
)
def test_a_row_that_cannot_be_read_is_one_that_is_lost(
    crash: Crash, body: dict[str, Any]
) -> None:
    crash.store.write(Put(SANDBOX_ROW, "x" * 20, body))
    good = crash.first.sandboxes.create(ECHO, tenant="red")
    rig = crash.restart()

    assert [s.id for s in rig.sandboxes.list_sandboxes()] == [good.id]
    assert [row.id for row in crash.store.scan(SANDBOX_ROW)] == [good.id]


def test_one_that_cannot_be_buried_keeps_nobody_from_going_on(
    crash: Crash, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its row is there for the next start."""
    bad, other = (crash.first.sandboxes.create(ECHO, tenant="red") for _ in range(2))
    for sandbox in (bad, other):
        _rewrite(crash.store, sandbox, state="killed")
    good = crash.first.sandboxes.create(ECHO, tenant="red")
    bury = EndedLogs.bury

    def refuse(self: EndedLogs, sandbox_id: str, **more: Any) -> None:
        if sandbox_id == bad.id:
            raise OSError(28, "no space left")
        bury(self, sandbox_id, **more)

    with monkeypatch.context() as patch:
        patch.setattr(EndedLogs, "bury", refuse)
        rig = crash.restart()

    assert [s.id for s in rig.sandboxes.list_sandboxes()] == [good.id]
    rows = {row.id for row in crash.store.scan(SANDBOX_ROW)}
    assert rows == {bad.id, good.id}
    assert f"{bad.id} is not buried" in caplog.text
    crash.restart()
    assert [row.id for row in crash.store.scan(SANDBOX_ROW)] == [good.id]


@pytest.mark.parametrize("same", [True, False])
def test_a_supervisor_that_does_not_answer_is_killed_without_its_mark(
    crash: Crash, *, same: bool
) -> None:
    """By its row: the environment of one in namespaces cannot be read by any user.

    Another process that has its pid since is left alone.
    """
    before = crash.first.sandboxes.create(ECHO, tenant="red")
    fake = _fake(crash.first, before)
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], env={}, stdin=subprocess.PIPE
    ) as process:
        fake.pid = process.pid
        before.set_timeout(50)
        row = SandboxRow.parse(crash.store.scan(SANDBOX_ROW)[0].body)
        assert row.supervisor == tree.named(process.pid)
        if not same:
            assert row.pid_started is not None
            _rewrite(crash.store, before, pid_started=row.pid_started - 1)
        fake.alive = False
        crash.restart()
        ended = process.poll() if not same else process.wait(5)
        process.communicate(b"\n")

    assert ended == (-9 if same else None)


@pytest.mark.parametrize("state", ["starting", "killed"])
def test_one_that_nobody_can_wait_for_is_not_taken_up(crash: Crash, state: str) -> None:
    """Its id was never told to anybody, or its end had begun."""
    before = crash.first.sandboxes.create(ECHO, tenant="red")
    _rewrite(crash.store, before, state=state)
    rig = crash.restart()

    assert rig.sandboxes.list_sandboxes() == []
    assert crash.store.scan(SANDBOX_ROW) == ()


def test_a_kill_is_noted_before_the_first_process_ends(crash: Crash) -> None:
    """So that a crash in the middle of it does not bring the sandbox back."""
    sandbox = crash.first.sandboxes.create(ECHO, tenant="red")
    states: list[str] = []
    _fake(crash.first, sandbox).during["kill"] = lambda: states.append(
        crash.store.scan(SANDBOX_ROW)[0].body["state"]
    )
    crash.first.sandboxes.kill(sandbox.id)

    assert states == ["killed"]


def test_those_that_go_on_count_even_where_fewer_may_be_now(crash: Crash) -> None:
    made = {crash.first.sandboxes.create(ECHO, tenant="red").id for _ in range(3)}
    rig = crash.restart(max_sandboxes_per_tenant=2)

    assert {s.id for s in rig.sandboxes.list_sandboxes(tenant="red")} == made
    with pytest.raises(SandboxLimitError):
        rig.sandboxes.create(ECHO, tenant="red")


def test_of_too_many_every_one_ends_in_its_time(crash: Crash) -> None:
    """Also when more end at once than this platform would ever have made."""
    for tenant in ["red", "blue"] * 20:
        sandbox = crash.first.sandboxes.create(CreateOptions(), tenant=tenant)
        _rewrite(crash.store, sandbox, end_at=utc_now() - timedelta(seconds=5))
    hold = threading.Event()
    for fake in crash.first.backend.started:
        fake.during["kill"] = lambda: hold.wait(5)
    rig = crash.restart(max_sandboxes=1)
    wait_until(lambda: rig.sandboxes._background.waiting == 18)
    hold.set()

    wait_until(lambda: crash.store.scan(SANDBOX_ROW) == ())


def test_a_platform_that_was_closed_leaves_nothing_to_take_up(crash: Crash) -> None:
    crash.first.sandboxes.create(ECHO, tenant="red")
    crash.first.sandboxes.close(5.0)

    assert crash.store.scan(SANDBOX_ROW) == ()
    assert crash.restart().sandboxes.list_sandboxes() == []


def test_a_row_that_cannot_be_written_ends_no_sandbox(
    crash: Crash, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox = crash.first.sandboxes.create(ECHO, tenant="red")

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(crash.store, "write", full)
        sandbox.pause()
        assert sandbox.connect(5) is True

    assert sandbox.life.state is State.RUNNING
    assert "is not up to date" in caplog.text


def _marked(sandbox_id: str, script: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", script],
        env={tree.MARKER: sandbox_id},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_a_sweep_kills_what_outlived_its_sandbox_and_nothing_else() -> None:
    """What such a process has started goes with it, even with another environment."""
    dead, other = new_id()[:20], new_id()[:20]
    parent = _marked(
        dead,
        "import subprocess, sys;"
        " child = subprocess.Popen([sys.executable, '-c', 'input()'], env={});"
        " print(child.pid, flush=True); input()",
    )
    bystander = _marked(other, "input()")
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        kill_marked({dead})

        assert parent.wait(5) == -9
        entry = tree.table().get(child)
        assert entry is None or entry.zombie
        assert bystander.poll() is None
    finally:
        for process in (parent, bystander):
            process.kill()
            process.communicate()


def test_every_half_minute_the_ended_are_swept(tmp_path: Path) -> None:
    """It is on the clock of the platform, and goes on for as long as that runs."""
    clock = FakeClock()
    rig = PlatformRig(tmp_path, monotonic=clock)
    try:
        for _ in range(2):
            sandbox = rig.sandboxes.create(ECHO, tenant="red")
            rig.sandboxes.kill(sandbox.id)
            process = _marked(sandbox.id, "input()")

            def swept(process: subprocess.Popen[bytes] = process) -> bool:
                clock.now += 31  # the next sweep is set once the last one has ended
                rig.settle()
                return process.poll() == -9

            try:
                wait_until(swept)
            finally:
                process.kill()
                process.communicate()
    finally:
        rig.close()


def test_what_could_not_be_buried_is_in_the_next_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a full disk: its row, its folder, and its log."""
    clock = FakeClock()
    rig = PlatformRig(tmp_path, monotonic=clock)
    other = rig.sandboxes.create(ECHO, tenant="red")
    sandbox = rig.sandboxes.create(ECHO, tenant="red")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "no space left")

    try:
        with monkeypatch.context() as patch:
            patch.setattr(EndedLogs, "bury", full)
            with pytest.raises(OSError, match="no space left"):
                rig.sandboxes.kill(sandbox.id)
        assert {row.id for row in rig.store.scan(SANDBOX_ROW)} == {
            sandbox.id,
            other.id,
        }
        (tmp_path / "sandboxes" / "half-deleted").mkdir()
        clock.now += 31
        rig.settle()

        assert [row.id for row in rig.store.scan(SANDBOX_ROW)] == [other.id]
        assert [path.name for path in (tmp_path / "sandboxes").iterdir()] == [other.id]
        assert rig.sandboxes.ended.find(sandbox.id, "red") is not None
    finally:
        rig.close()


def test_one_that_ends_amid_a_sweep_is_buried_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told of its end stays true."""
    clock = FakeClock()
    rig = PlatformRig(tmp_path, monotonic=clock)
    sandbox = rig.sandboxes.create(ECHO, tenant="red")
    scan = rig.store.scan

    def ends_meanwhile(kind: str, /) -> tuple[Document, ...]:
        found = scan(kind)
        if kind == SANDBOX_ROW and rig.sandboxes.find(sandbox.id):
            rig.sandboxes.kill(sandbox.id)
        return found

    try:
        monkeypatch.setattr(rig.store, "scan", ends_meanwhile)
        clock.now += 31
        rig.settle()

        (ended,) = scan("ended")
        assert (ended.id, ended.body["reason"]) == (sandbox.id, "request")
    finally:
        rig.close()


def test_the_socket_of_what_does_not_answer_is_removed(crash: Crash) -> None:
    """Nobody else does, until a platform is stopped in good order."""
    sandbox = crash.first.sandboxes.create(ECHO, tenant="red")
    _fake(crash.first, sandbox).alive = False
    socket = Path(sandbox.identity.line.path)
    socket.parent.mkdir(exist_ok=True)
    other = socket.with_name("other")
    for path in (socket, other):
        path.touch()
    crash.restart()
    assert [path.exists() for path in (socket, other)] == [False, True]
