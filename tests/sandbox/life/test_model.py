"""All sandboxes against a model of their states, whatever is done in whatever order.

Acceptance 11: the transitions of section 5 and no others, on a clock of the test's own;
and after each step what the platform keeps (slots, folders, rows, tokens, processes) is
that of exactly the sandboxes that live.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from ppio_agent.exceptions import (
    NotFoundError,
    SandboxLimitError,
    SandboxStartError,
    SandboxStateError,
)
from ppio_agent.sandbox.life.changes import Change
from ppio_agent.sandbox.life.ended import SANDBOX_ROW
from ppio_agent.sandbox.life.live import LiveSandbox
from ppio_agent.sandbox.life.machine import EndReason, State
from ppio_agent.sandbox.life.options import CreateOptions
from ppio_agent.sandbox.life.rows import SandboxRow
from ppio_agent.storage import open_store
from tests.sandbox.fakes import FakeClock, FakeSandbox
from tests.sandbox.rig import PlatformRig

_LIMIT = 4
_PAUSED_TIMEOUT = 50
_EPOCH = datetime(2030, 1, 1, tzinfo=timezone.utc)

_seconds = st.integers(1, 60)


@define(eq=False)
class Model:
    """What a sandbox should be."""

    id: str
    options: CreateOptions
    ends: float
    last: float  # its last traffic, or its last start or resume
    state: str = "running"
    pauses: bool = False
    open: int = 0
    reason: EndReason | None = None
    heard: list[tuple[State, EndReason | None]] = field(factory=list)

    @property
    def alive(self) -> bool:
        return self.state != "killed"

    def move(self, state: str, ends: float) -> None:
        self.state, self.ends = state, ends

    def kill(self, reason: EndReason) -> None:
        self.state, self.reason = "killed", reason

    def pass_time(self, now: float) -> None:
        """Be what it should be once all that is due has been done."""
        idle = self.options.idle_timeout
        quiet = idle and not self.open and now - self.last >= idle
        if now >= self.ends:
            reason = EndReason.TIMEOUT
        elif self.state == "running" and quiet:
            reason = EndReason.IDLE
        else:
            return
        if self.state == "running" and self.pauses:
            self.move("paused", now + _PAUSED_TIMEOUT)
        else:
            self.kill(reason)


class SandboxesMachine(RuleBasedStateMachine):
    """Everything that clients, time, processes and crashes can do to sandboxes."""

    sandboxes = Bundle("sandboxes")

    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock()
        self.folder = Path(tempfile.mkdtemp(prefix="ppio-model-"))
        self.store = open_store("memory://")
        self.models: dict[str, Model] = {}
        self.rig = self._rig([])

    def _rig(self, left: list[FakeSandbox]) -> PlatformRig:
        return PlatformRig(
            self.folder,
            store=self.store,
            agent=False,
            left=left,
            monotonic=self.clock,
            utc=lambda: _EPOCH + timedelta(seconds=self.clock.now),
            max_sandboxes_per_tenant=_LIMIT,
            paused_timeout=_PAUSED_TIMEOUT,
        )

    def teardown(self) -> None:
        if hasattr(self, "rig"):
            self.rig.close()
            assert list((self.folder / "sandboxes").iterdir()) == []
            shutil.rmtree(self.folder)

    # What a test can do

    @rule(
        target=sandboxes,
        timeout=_seconds,
        pauses=st.booleans(),
        idle=st.sampled_from([0, 0, 5, 30]),
        fails=st.sampled_from([False] * 9 + [True]),
    )
    def create(
        self, timeout: int, *, pauses: bool, idle: int, fails: bool
    ) -> Model | object:
        options = CreateOptions(
            timeout=timeout, pauses=pauses, idle_timeout=float(idle), auto_resume=True
        )
        self.rig.backend.fails = fails
        full = sum(model.alive for model in self.models.values()) >= _LIMIT
        try:
            sandbox = self.rig.sandboxes.create(options, tenant="red")
        except SandboxLimitError:
            assert full
            return multiple()
        except SandboxStartError:
            assert fails
            assert not full
            return multiple()
        finally:
            self.rig.backend.fails = False
        assert not full
        assert not fails
        now = self.clock.now
        model = Model(sandbox.id, options, ends=now + timeout, last=now, pauses=pauses)
        self.models[sandbox.id] = model
        self._listen(sandbox)
        return model

    def _listen(self, sandbox: LiveSandbox) -> None:
        model = self.models[sandbox.id]

        def note(change: Change) -> None:
            if change.kind == "state":
                model.heard.append((change.state, change.reason))

        sandbox.subscribe(note)

    def _do(
        self,
        model: Model,
        action: Callable[[LiveSandbox], object],
        *,
        allowed: tuple[str, ...] = ("running", "paused"),
    ) -> bool:
        """Do something; return whether it was to succeed, which it then did."""
        try:
            sandbox = self.rig.sandboxes.get(model.id)
        except NotFoundError:
            assert not model.alive
            return False
        assert model.alive
        try:
            action(sandbox)
        except SandboxStateError:
            assert model.state not in allowed
            return False
        assert model.state in allowed
        return True

    def _resumed(self, model: Model, timeout: float) -> None:
        model.move("running", self.clock.now + timeout)
        model.last = self.clock.now

    @rule(model=sandboxes)
    def pause(self, model: Model) -> None:
        if self._do(model, LiveSandbox.pause, allowed=("running",)):
            model.move("paused", self.clock.now + _PAUSED_TIMEOUT)

    @rule(model=sandboxes, timeout=_seconds, pauses=st.sampled_from([None, True]))
    def resume(self, model: Model, timeout: int, *, pauses: bool | None) -> None:
        def act(sandbox: LiveSandbox) -> None:
            sandbox.resume(timeout, pauses=pauses)

        if self._do(model, act, allowed=("paused",)):
            self._resumed(model, timeout)
            model.pauses = model.pauses if pauses is None else pauses

    @rule(model=sandboxes, timeout=_seconds)
    def connect(self, model: Model, timeout: int) -> None:
        if not self._do(model, lambda sandbox: sandbox.connect(timeout)):
            return
        if model.state == "paused":
            self._resumed(model, timeout)
        else:
            model.ends = max(model.ends, self.clock.now + timeout)

    @rule(model=sandboxes)
    def data_request(self, model: Model) -> None:
        """One that resumes it, if it is paused."""
        if self._do(model, LiveSandbox.wake) and model.state == "paused":
            self._resumed(model, model.options.timeout)

    @rule(model=sandboxes, timeout=st.integers(0, 60))
    def set_timeout(self, model: Model, timeout: int) -> None:
        def act(sandbox: LiveSandbox) -> None:
            sandbox.set_timeout(timeout)

        if self._do(model, act, allowed=("running",)):
            model.ends = self.clock.now + timeout

    @rule(model=sandboxes, timeout=_seconds)
    def extend(self, model: Model, timeout: int) -> None:
        if self._do(model, lambda sandbox: sandbox.extend(timeout)):
            model.ends = max(model.ends, self.clock.now + timeout)

    @rule(model=sandboxes)
    def exchange(self, model: Model) -> None:
        """Begins, or one that is under way ends."""
        if not model.alive:
            return
        sandbox = self.rig.sandboxes.get(model.id)
        if model.open:
            sandbox.traffic_ended()
            model.open, model.last = model.open - 1, self.clock.now
        elif model.state == "running":
            sandbox.traffic_began()
            model.open += 1

    @rule(model=sandboxes)
    def kill(self, model: Model) -> None:
        def act(sandbox: LiveSandbox) -> None:
            self.rig.sandboxes.kill(sandbox.id)

        if self._do(model, act):
            model.kill(EndReason.REQUEST)

    @rule(model=sandboxes, memory=st.booleans())
    def lose(self, model: Model, *, memory: bool) -> None:
        if model.alive:
            self._fake(model).lose("memory" if memory else "crashed")
            model.kill(EndReason.MEMORY if memory else EndReason.CRASHED)

    @rule(model=consumes(sandboxes))
    def forget(self, model: Model) -> None:
        """So that the others have the machine's attention."""

    @rule(seconds=st.integers(1, 70))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    def platform_crashes(self) -> None:
        """And with it what it knew of exchanges; the next one counts idleness anew."""
        self.rig = self._rig(self.rig.crash())
        for sandbox in self.rig.sandboxes.list_sandboxes():
            model = self.models[sandbox.id]
            model.open, model.last = 0, self.clock.now
            self._listen(sandbox)

    # What has to be true

    def _fake(self, model: Model) -> FakeSandbox:
        found = self.rig.backend.started
        return next(fake for fake in found if fake.spec.sandbox_id == model.id)

    def _settled(self) -> bool:
        """Have everything done that is due; return whether there is anything yet."""
        if not hasattr(self, "rig"):
            return False
        self.rig.settle()
        self._pass_time()
        return True

    def _pass_time(self) -> None:
        for model in self.models.values():
            if model.alive:
                model.pass_time(self.clock.now)

    @invariant()
    def everything_is_as_the_model_says(self) -> None:
        if not self._settled():
            return
        alive = {model.id: model for model in self.models.values() if model.alive}
        sandboxes = self.rig.sandboxes
        found = {sandbox.id: sandbox for sandbox in sandboxes.list_sandboxes()}
        rows = {row.id: row.body for row in self.store.scan(SANDBOX_ROW)}
        folders = {path.name for path in (self.folder / "sandboxes").iterdir()}
        living = {
            fake.spec.sandbox_id for fake in self.rig.backend.started if fake.alive
        }
        assert set(alive) == set(found) == set(rows) == folders == living
        for id_, model in alive.items():
            life, row = found[id_].life, SandboxRow.parse(rows[id_])
            expected = (model.state, model.ends, model.pauses)
            assert (life.state.value, life.ends, life.pauses) == expected
            assert (row.state, row.end_at) == (life.state, life.end_at)
            assert self._fake(model).paused == (model.state == "paused")
            assert sandboxes.owner_of(found[id_].identity.access_token or "") == id_

    @invariant()
    def every_change_that_was_told_is_in_the_table(self) -> None:
        if not self._settled():
            return
        for model in self.models.values():
            state = State.RUNNING
            for after, reason in model.heard:
                assert after in _NEXT[state], f"{state} → {after}"
                assert (reason is not None) == (after is State.KILLED)
                state = after
            assert state.value == model.state
            assert not model.heard or model.heard[-1][1] is model.reason


_NEXT: dict[State, set[State]] = {
    State.RUNNING: {State.PAUSED, State.KILLED},
    State.PAUSED: {State.RUNNING, State.KILLED},
    State.KILLED: set(),
}

TestSandboxes = SandboxesMachine.TestCase
TestSandboxes.settings = settings(
    max_examples=25,
    stateful_step_count=30,
)
