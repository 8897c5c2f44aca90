"""Control groups of sandboxes: made, entered, ended; and a backend that has them.

Where this machine lets a test make groups they are real ones, though without limits;
elsewhere, and where limits are looked at, folders stand for them. That the kernel
has no process in a group that is divided is seen with one controller, if it is free.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent._util.clock import Deadline
from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import SandboxStartError
from ppio_agent.sandbox.backends import holds, supervised
from ppio_agent.sandbox.backends.control_group import (
    ControlGroup,
    ControlGroups,
    find_group,
    limits,
    open_groups,
)
from ppio_agent.sandbox.backends.delegation import Place, mounts
from ppio_agent.sandbox.backends.process import ProcessBackend
from ppio_agent.sandbox.supervisor import tree
from tests.sandbox.sandboxkit import Lab, no_zygote
from tests.support import processes_marked, wait_until

LIMITED = frozenset({"memory", "cpu", "pids"})
MIB = 1024 * 1024


def _place(folder: Path, *pids: int) -> Place:
    return Place(path=folder, controllers=LIMITED, pids=pids)


@contextmanager
def _sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "100"], start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder that stands for a group."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    return folder


@pytest.fixture
def groups(base: Path) -> ControlGroups:
    """Groups that are folders, whose files keep what was written last."""
    return ControlGroups(_place(base), "me", rmdir=shutil.rmtree)


@pytest.fixture
def best(groups: ControlGroups) -> Iterator[ControlGroups]:
    """Real groups where this machine lets a test have them."""
    seen = mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    folders = [folder / f"ppio-test-{new_id()}" for _, folder in seen]
    try:
        folders[0].mkdir()
    except (IndexError, OSError):
        yield groups
        return
    yield ControlGroups(Place(path=folders[0], controllers=frozenset()), "me")
    folders[0].rmdir()


class Filled(NamedTuple):
    """A group with a process that has to move before it is divided."""

    path: Path
    controllers: frozenset[str]
    pid: int
    rmdir: Callable[[Path], object]

    def groups(self, owner: str, *, moved: bool = False) -> ControlGroups:
        """Return a platform's; that of another may have moved the process already."""
        pids = () if moved else (self.pid,)
        place = Place(path=self.path, controllers=self.controllers, pids=pids)
        return ControlGroups(place, owner, rmdir=self.rmdir)

    def is_as_it_was(self) -> bool:
        """Whether the process is in it, nothing is handed down, and no group there."""
        handed = self.path / "cgroup.subtree_control"
        return (
            (self.path / "cgroup.procs").read_text().split() == [str(self.pid)]
            and handed.read_text() in ("", "-cpu -memory -pids")
            and not any(entry.is_dir() for entry in self.path.iterdir())
        )


@contextmanager
def _real_group() -> Iterator[Path | None]:
    """Make a group of this machine's that has a controller nobody uses, if any."""
    seen = mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    with ExitStack() as stack:
        try:
            top = seen[0][1]
            fd = os.open(top, os.O_RDONLY)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)  # another run of these tests
            handed = top / "cgroup.subtree_control"
            if "hugetlb" not in handed.read_text().split():
                handed.write_text("+hugetlb")
                stack.callback(handed.write_text, "-hugetlb")
            folder = top / f"ppio-test-{new_id()}"
            folder.mkdir()
        except (IndexError, OSError):
            yield None
            return
        stack.callback(ControlGroup(folder).end)
        yield folder


@pytest.fixture
def filled(base: Path) -> Iterator[Filled]:
    """A real group where this machine lets a test divide one."""
    with _real_group() as real, _sleeper() as process:
        (real or base).joinpath("cgroup.procs").write_text(str(process.pid))
        if real is None:
            yield Filled(base, LIMITED, process.pid, shutil.rmtree)
        else:
            yield Filled(real, frozenset({"hugetlb"}), process.pid, os.rmdir)


@pytest.fixture
def grouped(lab: Lab, groups: ControlGroups, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Sandboxes with groups, in none of which is a chain of short lives."""
    monkeypatch.setattr(supervised, "_LOOKS", 1)
    lab.backend = ProcessBackend(no_zygote(), groups=groups)
    return lab


# What a group limits


@given(st.integers(1, 2**20), st.floats(0.001, 512, allow_nan=False))
def test_limits_are_what_was_asked_for(memory_mb: int, cpus: float) -> None:
    """Memory with what the supervisor may take; a share that the kernel accepts."""
    written = limits(memory_mb * MIB, cpus)
    quota, period = map(int, written["cpu.max"].split())

    assert int(written["memory.max"]) == (memory_mb + 64) * MIB
    assert quota >= 1000
    assert quota / period == pytest.approx(max(cpus, 0.01), abs=1e-5)


def test_a_group_is_made_with_its_limits(
    groups: ControlGroups, base: Path, lab: Lab
) -> None:
    """Only for what can be limited there."""
    group = groups.make(lab.spec(memory_mb=100, cpus=0.5))
    written = {file.name: file.read_text() for file in group.path.iterdir()}

    assert group.path.parent == base
    assert written == {
        "memory.max": str(164 * MIB),
        "memory.oom.group": "1",
        "cpu.max": "50000 100000",
        "pids.max": "1024",
    }
    assert group.limits_cpus
    place = Place(path=base, controllers=frozenset({"memory"}))
    other = ControlGroups(place, "other").make(lab.spec())
    assert {file.name for file in other.path.iterdir()} == {
        "memory.max",
        "memory.oom.group",
    }


def test_swap_is_no_way_around_the_limit(
    groups: ControlGroups, base: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel counts it."""
    mkdir = Path.mkdir

    def mkdir_with_swap(self: Path) -> None:
        mkdir(self)
        (self / "memory.swap.max").touch()

    spec = lab.spec()
    monkeypatch.setattr(Path, "mkdir", mkdir_with_swap)

    assert (groups.make(spec).path / "memory.swap.max").read_text() == "0"


def test_a_group_that_cannot_be_limited_is_not_left(
    base: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_text(self: Path, text: str) -> int:
        raise OSError(22, "Invalid argument", str(self))

    groups = ControlGroups(_place(base), "me")
    spec = lab.spec()
    monkeypatch.setattr(Path, "write_text", write_text)

    with pytest.raises(OSError, match="Invalid argument"):
        groups.make(spec)
    assert list(base.iterdir()) == []


# Whoever is in a group


def test_a_group_ends_with_all_that_is_in_it(best: ControlGroups, lab: Lab) -> None:
    """Whatever session they are in. A second end is none."""
    group = best.make(lab.spec())
    with _sleeper() as process:
        group.add(process.pid)

        assert group.end()
        assert process.wait(10) == -9
    assert not group.path.exists()
    assert group.end()


def test_groups_that_were_made_below_end_with_it(best: ControlGroups, lab: Lab) -> None:
    group = best.make(lab.spec())
    (group.path / "a" / "b").mkdir(parents=True)

    assert group.end()
    assert not group.path.exists()


def test_whoever_is_in_a_group_below_ends_with_it(base: Path) -> None:
    """As well where the kernel does not kill the whole of one by itself."""
    (base / "a" / "b").mkdir(parents=True)
    (base / "cgroup.procs").touch()
    with _sleeper() as process:
        (base / "a" / "b" / "cgroup.procs").write_text(f"{process.pid}\n")
        ControlGroup(base).kill()

        assert process.wait(10) == -9


def test_a_process_that_has_ended_is_not_let_in(best: ControlGroups, lab: Lab) -> None:
    """As the kernel says it; a folder takes anything."""
    group = best.make(lab.spec())
    try:
        if not (group.path / "cgroup.events").exists():
            return
        with pytest.raises(ProcessLookupError):
            group.add(2**22 + 1)
    finally:
        assert group.end()


def test_a_group_that_stays_is_told(base: Path) -> None:
    """Who waits for its end does so for a while."""

    def refuse(_: Path) -> None:
        raise OSError(16, "Device or resource busy")

    (base / "g").mkdir()

    assert not ControlGroup(base / "g", refuse).end(Deadline.after(0.01))


@pytest.mark.parametrize(
    ("events", "full"),
    [
        ("low 0\nmax 7\noom 0\noom_kill 0\n", False),
        ("low 0\nmax 7\noom 1\noom_kill 3\noom_group_kill 1\n", True),
        (None, False),
    ],
)
def test_a_group_tells_whether_the_kernel_has_ended_it(
    events: str | None, full: object, base: Path
) -> None:
    """To reach the limit is nothing: memory that can be had back is taken first."""
    if events is not None:
        (base / "memory.events").write_text(events)

    assert ControlGroup(base).was_full() is full


# The place of all groups


def test_a_place_is_divided_when_who_is_in_it_has_moved(base: Path) -> None:
    """Only then does the kernel let its limits be handed down."""
    (base / "cgroup.procs").write_text("41\n42\n")
    ControlGroups(_place(base, 41, 42), "me", rmdir=shutil.rmtree).begin()

    assert (base / "ppio-platform" / "cgroup.procs").read_text() == "42"
    assert (base / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert {entry.name for entry in base.iterdir() if entry.is_dir()} == {
        "ppio-platform",
        "ppio-me-open",
    }


def test_a_place_without_processes_needs_no_group_for_them(
    groups: ControlGroups, base: Path
) -> None:
    """It was divided by somebody else, and stays so."""
    groups.begin()
    groups.close()

    assert [entry for entry in base.iterdir() if entry.is_dir()] == []
    assert (base / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_a_place_is_as_it_was_when_the_last_group_has_gone(
    filled: Filled, lab: Lab
) -> None:
    """Whichever of the platforms there closes last. A second close is none."""
    first, second = filled.groups("a"), filled.groups("b", moved=True)
    first.begin()
    second.begin()
    sandbox = second.make(lab.spec())
    first.close()
    assert (filled.path / "ppio-b-open").exists()
    second.close()
    assert (filled.path / "ppio-platform").exists()
    assert sandbox.end()
    second.close()
    second.close()

    assert filled.is_as_it_was()


def test_what_a_platform_that_was_killed_has_left_is_in_nobodys_way(
    filled: Filled,
) -> None:
    (filled.path / "ppio-platform").mkdir()
    (filled.path / "ppio-a-open").mkdir()
    groups = filled.groups("a")
    groups.begin()
    groups.close()

    assert filled.is_as_it_was()


def test_a_place_is_put_back_when_those_that_end_have_ended(base: Path) -> None:
    """As long as the kernel ends somebody in a group it cannot be removed."""
    looks = iter([OSError(16, "Device or resource busy")])

    def rmdir(path: Path) -> None:
        if path.name == "ppio-platform" and (error := next(looks, None)):
            raise error
        shutil.rmtree(path)

    (base / "cgroup.procs").write_text("41\n")
    groups = ControlGroups(_place(base, 41), "me", rmdir=rmdir)
    groups.begin()
    groups.close()

    assert not (base / "ppio-platform").exists()


def test_a_place_in_which_no_group_can_be_made_is_as_it_was(
    filled: Filled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though what can be limited was handed down, and the process had moved."""
    mkdir = Path.mkdir

    def refuse(self: Path, **options: bool) -> None:
        if self.name == "ppio-a-open":
            raise BlockingIOError(11, "Resource temporarily unavailable")
        mkdir(self, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BlockingIOError):
        filled.groups("a").begin()

    assert filled.is_as_it_was()


def test_a_place_that_cannot_be_divided_is_as_it_was(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Sandboxes then do without; it is said why, once."""
    caplog.set_level("INFO", "ppio_agent")
    (base / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (base / "cgroup.subtree_control").mkdir()  # which cannot be written
    place = _place(base, os.getpid())

    assert open_groups(base, find=lambda: place, rmdir=shutil.rmtree) is None
    assert (base / "cgroup.procs").read_text() == str(os.getpid())
    assert not (base / "ppio-platform").exists()
    (record,) = caplog.records
    assert "cannot be divided: [Errno 21] Is a directory" in record.getMessage()


def test_why_there_are_no_groups_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "ppio_agent")

    assert open_groups(tmp_path, find=lambda: "there is no bread") is None
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.getMessage().endswith("not kept by control groups: there is no bread")


def test_groups_that_a_platform_has_left_are_ended(
    base: Path, lab: Lab, best: ControlGroups
) -> None:
    """Not those of its live sandboxes, nor of another platform at the same place."""
    live, dead = lab.spec(), lab.spec()
    kept, left = best.make(live), best.make(dead)
    other = kept.path.parent / f"ppio-other-{dead.sandbox_id}"
    other.mkdir()
    with _sleeper() as process:
        left.add(process.pid)
        best.begin()
        best.sweep({live.sandbox_id})

        assert process.wait(10) == -9
    assert (left.path.exists(), kept.path.exists(), other.exists()) == (
        False,
        True,
        True,
    )
    other.rmdir()
    assert kept.end()
    assert (kept.path.parent / "ppio-me-open").exists()
    best.close()


def test_groups_that_were_left_end_together(
    groups: ControlGroups, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A platform does not start later for each that stays."""
    told: list[tuple[str, Deadline | None]] = []

    def kill(_: ControlGroup) -> None:
        told.append(("kill", None))

    def end(_: ControlGroup, deadline: Deadline | None = None) -> bool:
        told.append(("end", deadline))
        return False

    for _ in range(2):
        groups.make(lab.spec())
    monkeypatch.setattr(ControlGroup, "kill", kill)
    monkeypatch.setattr(ControlGroup, "end", end)
    groups.sweep(())
    (_, first), (_, second) = told[2:]

    assert [what for what, _ in told] == ["kill", "kill", "end", "end"]
    assert first is second is not None


def test_platforms_at_one_place_name_their_groups_apart(
    base: Path, lab: Lab, tmp_path: Path
) -> None:
    """By their data directories; a platform finds those of the one before it."""
    spec = lab.spec()
    names = []
    for data_dir in (tmp_path / "a", tmp_path / "b", tmp_path / "b"):
        groups = open_groups(data_dir, find=lambda: _place(base), rmdir=shutil.rmtree)
        assert groups is not None
        group = groups.make(spec)
        names.append(group.path.name)
        assert group.end()

    assert names[0] != names[1] == names[2]


# Sandboxes


def test_a_sandbox_is_in_its_group_before_it_starts_anything(
    grouped: Lab, base: Path
) -> None:
    """It chooses no processors, for the group limits them; it takes the group along."""
    sandbox = grouped.start("import os; print(len(os.sched_getaffinity(0)))", cpus=0.5)
    tail = sandbox.wait_phase("exited").log_tail
    (group,) = base.iterdir()

    assert (group / "cgroup.procs").read_text() == str(sandbox.running.pid)
    assert int(tail) == len(os.sched_getaffinity(0))
    sandbox.running.kill(0.0)
    assert not group.exists()


def test_a_sandbox_whose_memory_the_kernel_has_found_used_up_ends_for_that(
    grouped: Lab, base: Path
) -> None:
    """It kills all of it, the supervisor included."""
    sandbox = grouped.serve()
    (group,) = base.iterdir()
    (group / "memory.events").write_text("oom_kill 3\n")
    os.kill(sandbox.running.pid, 9)
    wait_until(lambda: sandbox.lost)

    assert sandbox.lost == ["memory"]
    assert not group.exists()


def test_who_has_left_the_group_ends_with_its_session(grouped: Lab) -> None:
    """When the supervisor is lost, and it does not say whose it is, either."""
    sandbox = grouped.serve(
        """
        import subprocess
        child = subprocess.Popen(["sleep", "100"], env={"PATH": os.environ["PATH"]})
        os.environ["CHILD"] = str(child.pid)
        serve()
        """
    )
    pid = int(sandbox.get()["env"]["CHILD"])
    os.kill(sandbox.running.pid, 9)
    wait_until(lambda: sandbox.lost)

    wait_until(lambda: (left := tree.table().get(pid)) is None or left.zombie)


def test_a_sandbox_that_uses_all_it_may_ends_at_once(
    grouped: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its supervisor, which sees to that, has to share with what it ends."""
    asked = []

    def kill(group: ControlGroup) -> None:
        asked.append((group.path / "cpu.max").read_text())

    sandbox = grouped.start(cpus=0.1)
    monkeypatch.setattr(ControlGroup, "kill", kill)
    sandbox.running.kill(0.0)

    assert asked == ["max"]


def test_a_sandbox_without_a_group_is_not_started(
    grouped: Lab, base: Path, tmp_path: Path
) -> None:
    """It is said what is the matter; nothing of it is left."""
    spec = grouped.spec("serve()")
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(SandboxStartError, match=r"no control group: .*No such file"):
        grouped.begin(spec)

    assert list(processes_marked(spec.sandbox_id)) == []


def test_a_sandbox_that_is_not_let_in_is_ended(
    grouped: Lab, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has started nothing by then."""

    def refuse(_: ControlGroup, pid: int) -> None:
        raise PermissionError(13, f"Permission denied for {pid}")

    spec = grouped.spec("serve()")
    with monkeypatch.context() as patch:
        patch.setattr(ControlGroup, "add", refuse)
        with pytest.raises(SandboxStartError, match="not let into its control group"):
            grouped.begin(spec)

    assert list(processes_marked(spec.sandbox_id)) == []
    assert list(base.iterdir()) == []


def test_a_group_is_not_left_by_a_sandbox_that_is_not_made(
    grouped: Lab, base: Path
) -> None:
    spec = grouped.spec("serve()")
    line = attrs.evolve(spec.line, path=str(base / "no" / "folder"))
    with pytest.raises(SandboxStartError, match="could not be started"):
        grouped.begin(attrs.evolve(spec, line=line))

    assert list(base.iterdir()) == []


def test_a_sandbox_that_is_taken_over_has_its_group_still(
    grouped: Lab, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is removed with it, also by a platform that makes none."""
    sandbox = grouped.serve(orphan_grace=60.0)
    (group,) = base.iterdir()
    find = partial(find_group, folder_of=lambda _: group, rmdir=shutil.rmtree)
    monkeypatch.setattr(holds, "find_group", find)
    other = Lab(grouped.folder)
    adopted = other.adopt(sandbox.spec)
    adopted.running.kill(0.0)

    assert not group.exists()
    other.close()


@pytest.mark.parametrize(
    ("name", "found"), [("ppio-me-a", True), ("ppio-me-b", False), ("x.scope", False)]
)
def test_the_group_of_a_sandbox_is_found_by_where_its_supervisor_is(
    name: str, found: object, base: Path
) -> None:
    """A supervisor may be in another's, as in that of the platform."""
    group = find_group("a", 1, folder_of=lambda _: base / name)

    assert (group is not None) is found
    assert find_group("a", 1, folder_of=lambda _: None) is None
