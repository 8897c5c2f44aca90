"""Which sandbox a conversation has, in every order in which processes may come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from itertools import chain, cycle

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.client.conversation import (
    check_session_id,
    conversation_metadata,
    in_order,
    session_id_of,
    settle,
)
from ppio_agent.exceptions import (
    ConflictError,
    SandboxCreationError,
    SessionNotFoundError,
    ValidationError,
)
from ppio_agent.wire.models import ListedSandbox, SandboxState

NOON = datetime(2026, 1, 2, 12, tzinfo=timezone.utc)


def listed(sandbox_id: str, tick: int) -> ListedSandbox:
    return ListedSandbox(
        sandbox_id=sandbox_id,
        template_id="tpl",
        state=SandboxState.RUNNING,
        started_at=NOON + timedelta(milliseconds=tick),
        end_at=NOON,
    )


def test_order() -> None:
    """The oldest is first; of equals the one with the smaller id."""
    found = [listed("c", 2), listed("b", 1), listed("a", 2)]

    assert [s.sandbox_id for s in in_order(found)] == ["b", "a", "c"]


def test_metadata() -> None:
    """It names session and template, and is read back if it can be one."""
    metadata = conversation_metadata("tpl", "s")

    assert metadata == {"ppio_session": "s", "ppio_template": "tpl"}
    assert conversation_metadata("tpl", None) == {}
    assert session_id_of(metadata) == "s"
    assert session_id_of(None) is None
    assert session_id_of({"ppio_session": 5}) is None
    assert session_id_of({"ppio_session": "two words"}) is None


@pytest.mark.parametrize("bad", ["", "two words", "ä", "x" * 257, 5, None])
def test_bad_session_ids(bad: object) -> None:
    """They could not stand in a header."""
    with pytest.raises(ValidationError, match="1 to 256"):
        check_session_id(bad)  # type: ignore[arg-type]  # that is the point


# ---- every order of steps ----------------------------------------------------------


@define(eq=False)
class World:
    """A platform whose every step waits for its turn.

    As the real one it shows a sandbox from its acceptance on and moves the start to the
    moment at which it is ready.
    """

    turn: Callable[[], None]
    now: int = 0
    starts: dict[str, int] = field(factory=dict)
    ready: set[str] = field(factory=set)
    used: list[str] = field(factory=list)

    def step(self) -> int:
        self.turn()
        self.now += 1
        return self.now

    def find(self) -> list[str]:
        self.step()
        return sorted(self.starts, key=lambda i: (self.starts[i], i))

    def create(self, name: str) -> Sandbox:
        self.starts[name] = self.step()
        self.starts[name] = self.step()
        self.ready.add(name)
        return Sandbox(name, self)

    def attach(self, name: str) -> Sandbox:
        while True:
            self.step()
            if name not in self.starts:
                raise SessionNotFoundError("gone")
            if name in self.ready:
                return Sandbox(name, self)

    def process(self, name: str) -> None:
        found = settle(
            find=self.find, create=lambda: self.create(name), attach=self.attach
        )
        self.step()
        self.used.append(found.sandbox_id)


@define(eq=False)
class Sandbox:
    sandbox_id: str
    world: World

    def dispose(self) -> None:
        self.world.step()
        self.world.starts.pop(self.sandbox_id, None)


class Lockstep:
    """Lets threads go on one at a time, in a given order."""

    def __init__(self, order: list[int]) -> None:
        self._order = order
        self._parked: dict[int, threading.Semaphore] = {}
        self._changed = threading.Condition()
        self._ended = 0

    def turn(self) -> None:
        gate = threading.Semaphore(0)
        with self._changed:
            self._parked[threading.get_ident()] = gate
            self._changed.notify_all()
        gate.acquire()

    def run(self, jobs: list[Callable[[], None]]) -> None:
        threads = [threading.Thread(target=self._job, args=(job,)) for job in jobs]
        for number, thread in enumerate(threads):
            thread.start()
            self._await(number + 1)
        alive = [t.ident for t in threads]
        turns = chain(self._order, cycle(range(len(jobs))))  # fair in the end
        while alive:
            chosen = alive[next(turns) % len(alive)]
            with self._changed:
                gate = self._parked.pop(chosen or 0, None)
            if gate is None:
                alive.remove(chosen)
                continue
            gate.release()
            self._await(len(jobs))
        for thread in threads:
            thread.join()

    def _job(self, job: Callable[[], None]) -> None:
        try:
            job()
        finally:
            with self._changed:
                self._ended += 1
                self._changed.notify_all()

    def _await(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(
                lambda: len(self._parked) + self._ended == count, 10
            )


@settings(max_examples=100, deadline=None)
@given(
    names=st.permutations(["a", "b", "c"]),
    order=st.lists(st.integers(0, 2), max_size=60),
)
def test_all_come_to_the_same_one(names: list[str], order: list[int]) -> None:
    """In any order of their steps, three processes use one sandbox, and one is left."""
    steps = Lockstep(order)
    world = World(steps.turn)

    steps.run([lambda name=name: world.process(name) for name in names])

    assert len(set(world.used)) == 1
    assert len(world.used) == 3
    assert list(world.starts) == [world.used[0]]


# ---- single cases --------------------------------------------------------------------


def test_one_alone_asks_twice() -> None:
    """A look before, and one after the creation: others may have come meanwhile."""
    world = World(lambda: None)
    world.process("mine")

    assert world.used == ["mine"]
    assert world.now == 5  # find, accept, ready, find, use


def test_a_list_that_lags_behind() -> None:
    """What it does not show yet is used, not created again."""
    world = World(lambda: None)
    found = settle(
        find=list,
        create=lambda: world.create("mine"),
        attach=world.attach,
    )

    assert found.sandbox_id == "mine"
    assert list(world.starts) == ["mine"]


def test_a_dead_one_that_is_still_listed() -> None:
    """It is passed over."""
    world = World(lambda: None)
    found = settle(
        find=lambda: ["dead", *world.starts],
        create=lambda: world.create("mine"),
        attach=world.attach,
    )

    assert found.sandbox_id == "mine"


def test_an_own_one_is_killed_when_the_other_cannot_be_taken() -> None:
    """Whatever goes wrong, nothing is left that nobody uses."""
    world = World(lambda: None)
    lists = iter([[], ["theirs"]])

    def attach(_: str) -> Sandbox:
        raise SandboxCreationError("never ready", sandbox_id="theirs", stage="ready")

    with pytest.raises(SandboxCreationError):
        settle(
            find=lambda: next(lists),
            create=lambda: world.create("mine"),
            attach=attach,
        )

    assert world.starts == {}


def test_no_end_of_others() -> None:
    """A conversation that never settles is an error after a while."""
    world = World(lambda: None)
    numbers = iter(range(1000))

    with pytest.raises(ConflictError, match="try again"):
        settle(
            find=lambda: [f"other-{next(numbers)}"],
            create=lambda: world.create("mine"),
            attach=lambda name: Sandbox(name, world),
        )
