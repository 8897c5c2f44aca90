"""The roster: so many may be in it, and each is found until it is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ppio_agent.exceptions import (
    SandboxLimitError,
    ServerBusyError,
    ServiceUnavailableError,
)
from ppio_agent.sandbox.life.live import LiveSandbox
from ppio_agent.sandbox.life.machine import Event
from ppio_agent.sandbox.life.options import CreateOptions
from ppio_agent.sandbox.life.roster import Roster
from tests.sandbox.rig import PlatformRig


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[PlatformRig]:
    made = PlatformRig(tmp_path, agent=False)
    yield made
    made.close()


@pytest.fixture
def made(rig: PlatformRig) -> list[LiveSandbox]:
    tenants = ("red", "red", "blue", "green")
    return [rig.sandboxes.create(CreateOptions(), tenant=tenant) for tenant in tenants]


@pytest.fixture
def roster(tmp_path: Path, rig: PlatformRig) -> Roster:
    config = PlatformRig(
        tmp_path / "other", agent=False, max_sandboxes_per_tenant=1, max_sandboxes=2
    )
    config.close()
    return Roster(config.config, monotonic=rig.monotonic)


def test_its_places_are_limited_for_each_and_for_all(
    roster: Roster, made: list[LiveSandbox]
) -> None:
    red, again, blue, green = made
    roster.admit(red)
    with pytest.raises(SandboxLimitError):
        roster.admit(again)
    roster.admit(blue)
    with pytest.raises(ServerBusyError):
        roster.admit(green)
    roster.leave(red)
    roster.leave(red)
    roster.admit(again)

    assert roster.everyone() == [blue, again]


def test_what_exists_already_is_taken_in_beyond_the_limit(
    roster: Roster, made: list[LiveSandbox]
) -> None:
    for sandbox in made:
        roster.enter(sandbox)

    assert roster.everyone() == made
    token = made[0].identity.access_token or ""
    assert roster.owner_of(token) == made[0].id
    roster.leave(made[0])
    # Who has its token only is told that it has ended.
    assert roster.owner_of(token) == made[0].id
    assert roster.find(made[0].id) is None


def test_one_that_is_being_killed_is_not_found_and_keeps_its_place(
    roster: Roster, made: list[LiveSandbox]
) -> None:
    roster.enter(made[0])
    assert roster.find(made[0].id) is made[0]
    made[0].kill(Event.KILL)

    assert roster.find(made[0].id) is None
    assert roster.everyone() == [made[0]]


def test_a_closed_one_admits_nobody(roster: Roster, made: list[LiveSandbox]) -> None:
    assert (roster.close(), roster.close()) == (True, False)
    with pytest.raises(ServiceUnavailableError, match="is stopping"):
        roster.admit(made[0])
