"""Whether a program may divide its control group, on systems of all kinds."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.sandbox.backends.delegation import (
    Group,
    Place,
    decide,
    folder_of,
    group_path,
    locate,
    look,
    mounts,
)

ALL = frozenset({"memory", "cpu", "pids", "io"})
ALL_NAMES = "cpuset cpu io memory pids\n"
NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\n\0"), min_size=1, max_size=4
)
PATHS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), max_size=2)
ME = os.getpid()


def _mount(root: str, folder: str, kind: str = "cgroup2") -> str:
    """Return how the kernel lists a mount."""
    for odd in "\\ \t":  # the backslash first, for it is in what replaces others
        root, folder = (x.replace(odd, f"\\{ord(odd):03o}") for x in (root, folder))
    return f"31 24 0:27 {root} {folder} rw,nosuid shared:9 - {kind} cgroup2 rw"


# Where groups are


@settings(max_examples=40)
@given(PATHS, PATHS, PATHS)
def test_a_group_is_found_below_where_those_above_it_are_seen(
    root: list[str], tail: list[str], folder: list[str]
) -> None:
    """Whatever they are called, and whatever else is mounted."""
    seen, place = "/" + "/".join(root), Path("/" + "/".join(folder))
    text = "\n".join([_mount("/", "/home", "ext4"), _mount(seen, str(place))])
    path = seen.rstrip("/") + "".join(f"/{name}" for name in tail)

    assert mounts(text) == [(seen, place)]
    assert locate(path or "/", mounts(text)) == place.joinpath(*tail)


def test_a_group_outside_of_what_is_seen_is_not_found() -> None:
    """A name that begins as another does is not below it."""
    assert locate("/docker/ab", [("/docker/a", Path("/x"))]) is None
    assert locate("/../b", [("/a", Path("/x"))]) is None


def test_the_mount_that_shows_least_is_taken() -> None:
    seen = [("/", Path("/all")), ("/a/b", Path("/some"))]

    assert locate("/a/b/c", seen) == Path("/some/c")
    assert locate("/a/c", seen) == Path("/all/a/c")


def test_the_group_of_a_process_is_that_of_version_2() -> None:
    """Where both versions are used it is one of many lines."""
    assert group_path("4:memory:/old\n1:name=systemd:/x\n0::/new\n") == "/new"
    assert group_path("4:memory:/old\n") is None


def test_a_process_that_has_ended_is_in_no_group(tmp_path: Path) -> None:
    assert folder_of(1, tmp_path) is None


# What is decided


def _own(name: str = "a.scope", **facts: object) -> Group:
    given = {"delegated": True, "controllers": ALL, "pids": (ME,), **facts}
    return Group(path=Path("/cg/above", name), **given)  # type: ignore[arg-type]


def _above(**facts: object) -> Group:
    given = {"delegated": True, "controllers": ALL, **facts}
    return Group(path=Path("/cg/above"), **given)  # type: ignore[arg-type]


def test_an_own_group_is_divided_when_who_is_in_it_has_moved() -> None:
    place = decide(_own(pids=(ME, 7)), None, {ME, 7})

    assert place == Place(
        path=Path("/cg/above/a.scope"),
        controllers=frozenset({"memory", "cpu", "pids"}),
        pids=(ME, 7),
    )


def test_the_group_above_is_divided_where_the_own_one_is_for_the_program_alone() -> (
    None
):
    """As `DelegateSubgroup=` does it: nothing is handed down to that one yet."""
    own = _own("ppio-platform", delegated=False, controllers=frozenset())
    place = decide(own, _above(), {ME})

    assert isinstance(place, Place)
    assert (place.path, place.pids) == (Path("/cg/above"), ())


@pytest.mark.parametrize(
    ("own", "above", "reason"),
    [
        (_own(system=True), None, "group of the whole system"),
        (_own(controllers=frozenset({"cpu"})), None, "scope has no memory controller"),
        (
            _own("x", delegated=False),
            _above(controllers=frozenset({"cpu"})),
            "above has no memory controller",
        ),
        (_own(pids=(ME, 7)), None, "other programs are in /cg/above/a.scope"),
        (_own(pids=(ME, 0)), None, "other programs"),  # of another namespace
        (_own("x", delegated=False), None, "x is not delegated"),
        (_own("x", delegated=False), _above(delegated=False), "x is not delegated"),
        (_own("x", delegated=False), _above(pids=(7,)), "other programs are in /cg/ab"),
    ],
)
def test_what_is_not_this_programs_alone_is_not_divided(
    own: Group, above: Group | None, reason: str
) -> None:
    """It is said why."""
    said = decide(own, above, {ME})

    assert isinstance(said, str)
    assert reason in said


# What is seen


class System:
    """Made-up folders of a system: what it tells about processes, and its groups.

    As of the kernel's, what can be limited in a group is what the one above hands down.
    """

    def __init__(self, folder: Path) -> None:
        self.proc, self.top = folder / "proc", folder / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        self.group("")
        for name in ("cgroup.events", "cgroup.subtree_control"):
            (self.top / name).unlink()  # as of the whole system's
        text = f"{_mount('/', str(self.top))}\n"
        (self.proc / "self" / "mountinfo").write_text(text)

    def group(self, path: str, *pids: int, hands: str = "") -> Path:
        """Make a group with processes, in groups that systemd has divided."""
        folder = self.top / path
        if not folder.parent.exists():
            self.group(os.path.dirname(path), hands=ALL_NAMES)
        above = folder.parent / "cgroup.subtree_control"
        had = above.read_text() if above.exists() else ALL_NAMES
        folder.mkdir(exist_ok=True)
        (folder / "cgroup.controllers").write_text(had)
        (folder / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
        (folder / "cgroup.events").write_text("populated 1\n")
        (folder / "cgroup.subtree_control").write_text(hands)
        return folder

    def enter(self, path: str, *others: int) -> Path:
        """Put this process into a new group."""
        (self.proc / "self" / "cgroup").write_text(f"0::/{path}\n")
        return self.group(path, ME, *others)

    def look(self, *delegated: Path) -> Place | str:
        """Look, where systemd says of some groups that they are delegated."""
        return look(self.proc, says=lambda folder: folder in delegated)


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


@pytest.fixture
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the administrator, whose every file can be written."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def test_a_delegated_group_is_seen(system: System) -> None:
    own = system.enter("user.slice/a.scope")

    assert system.look(own) == Place(
        path=own, controllers=frozenset({"memory", "cpu", "pids"}), pids=(ME,)
    )


def test_a_group_that_can_be_written_alone_is_not_enough(system: System) -> None:
    """It is so for the administrator, and of a user's own service manager."""
    system.enter("user.slice/a.scope")

    assert "not delegated" in str(system.look())


def test_a_group_above_that_is_delegated_is_seen(system: System) -> None:
    """A service with `DelegateSubgroup=` has handed nothing down when it starts."""
    service = system.group("system.slice/a.service")
    own = system.enter("system.slice/a.service/ppio-platform")

    assert (own / "cgroup.controllers").read_text() == ""
    assert system.look(service) == Place(
        path=service, controllers=frozenset({"memory", "cpu", "pids"})
    )


def test_above_a_unit_of_systemd_nothing_is_looked_for(system: System) -> None:
    """It is systemd's, whatever is delegated, and need not be asked about."""
    own = system.enter("user.slice/a.scope")
    asked: list[Path] = []

    def says(folder: Path) -> bool:
        asked.append(folder)
        return folder != own

    assert look(system.proc, says=says) == f"{own} is not delegated to this user"
    assert asked == [own]


@pytest.mark.parametrize("place", ["user.slice/a.scope", "theirs/mine", ""])
def test_a_platform_finds_the_place_that_another_has_divided(
    place: str, system: System, request: pytest.FixtureRequest
) -> None:
    """One in this program, or one that was killed, in a unit, a container, or so."""
    divided = system.group(place, hands=ALL_NAMES)
    if place == "theirs/mine":
        request.getfixturevalue("no_root")
        (divided.parent / "cgroup.subtree_control").unlink()  # not to be written
    system.enter(f"{place}/ppio-platform".lstrip("/"))
    scopes = [divided] if place.endswith(".scope") else []

    assert system.look(*scopes) == Place(
        path=divided, controllers=frozenset({"memory", "cpu", "pids"})
    )


@pytest.mark.usefixtures("no_root")
def test_a_group_of_this_user_below_one_of_others_is_its_own(system: System) -> None:
    """An administrator has handed it over."""
    own = system.enter("theirs/mine")
    (own.parent / "cgroup.subtree_control").unlink()  # not to be written
    place = system.look()

    assert isinstance(place, Place)
    assert place.path == own


def test_the_uppermost_group_of_a_container_is_its_own(system: System) -> None:
    (system.proc / "self" / "cgroup").write_text("0::/\n")
    system.group("", ME)
    place = system.look()

    assert isinstance(place, Place)
    assert place.path == system.top


def test_the_group_of_the_whole_system_is_nobodys(system: System) -> None:
    (system.proc / "self" / "cgroup").write_text("0::/\n")

    assert system.look(system.top) == "this program is in the group of the whole system"


def test_those_below_this_program_move_along(system: System) -> None:
    with subprocess.Popen(["sleep", "100"]) as child:
        own = system.enter("a.scope", child.pid)
        place = system.look(own)
        child.kill()

    assert isinstance(place, Place)
    assert place.pids == (ME, child.pid)


def test_the_program_that_has_started_this_one_stays_where_it_is(
    system: System,
) -> None:
    """As a shell, or the first process of a container: it is not this one's."""
    own = system.enter("a.scope", os.getppid())

    assert system.look(own) == f"other programs are in {own}"


def test_strangers_in_the_group_stay_where_they_are(system: System) -> None:
    own = system.enter("a.scope", 2**22 + 1)  # above the highest pid

    assert system.look(own) == f"other programs are in {own}"


def test_a_system_without_groups_is_told_so(system: System, tmp_path: Path) -> None:
    """Also one whose group has gone, or is hidden."""
    assert "no control groups" in str(look(tmp_path / "none"))
    (system.proc / "self" / "cgroup").write_text("0::/gone\n")
    assert "cannot be looked at: No such file" in str(system.look())


# What systemd says


def test_a_mark_of_systemd_is_read(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = system.enter("a.scope")
    marks = {(own, "user.delegate"): b"1"}

    def getxattr(path: Path, name: str) -> bytes:
        if (path, name) not in marks:
            raise OSError(61, "No data available")
        return marks[path, name]

    monkeypatch.setattr(os, "getxattr", getxattr, raising=False)
    assert isinstance(look(system.proc), Place)
    marks[own, "user.delegate"] = b"0"
    assert "not delegated" in str(look(system.proc))


@pytest.mark.usefixtures("no_root")
@pytest.mark.parametrize("answer", ["echo yes", "echo no", "exit 1"])
def test_the_service_manager_of_a_user_is_asked(
    answer: str, system: System, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It marks no groups."""
    system.enter("user.slice/a.scope")
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\n[ "$5" = a.scope ] && {answer}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert isinstance(look(system.proc), Place) is (answer == "echo yes")


@pytest.mark.usefixtures("no_root")
def test_without_a_service_manager_nothing_is_delegated(
    system: System, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    system.enter("user.slice/a.scope")
    monkeypatch.setenv("PATH", str(tmp_path))

    assert "not delegated" in str(look(system.proc))
