"""Locks that tell whether a worker on this machine is alive."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppio_agent.storage.actors.worker_locks import WorkerLocks

HOLD = """
import pathlib, sys
from ppio_agent.storage.actors.worker_locks import WorkerLocks
WorkerLocks(pathlib.Path(sys.argv[1])).hold("there")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.db"


@pytest.fixture
def locks(path: Path) -> Iterator[WorkerLocks]:
    locks = WorkerLocks(path)
    yield locks
    locks.close()


def test_a_worker_lives_as_long_as_its_process(path: Path, locks: WorkerLocks) -> None:
    """Its file stays until it is removed, so that all see that it is dead."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert not locks.is_dead("there")
        locks.remove("there")
        assert not locks.is_dead("there")
        process.kill()
        process.wait()
    assert locks.is_dead("there")
    assert WorkerLocks(path).is_dead("there")
    locks.remove("there")
    locks.remove("there")
    assert not locks.is_dead("there")  # nothing is known of it any more
    assert list(path.parent.iterdir()) == []


def test_a_worker_that_ended_well_is_not_known(path: Path, locks: WorkerLocks) -> None:
    locks.hold("w")
    locks.hold("w")
    locks.drop("w")
    locks.drop("w")
    assert not locks.is_dead("w")
    assert list(path.parent.iterdir()) == []


def test_a_worker_of_this_process_lives(path: Path, locks: WorkerLocks) -> None:
    """Seen from here, and from another store in the same process."""
    locks.hold("w")
    other = WorkerLocks(path)
    other.hold("w")
    other.close()
    assert not locks.is_dead("w")
    assert not other.is_dead("w")
    locks.close()
    assert other.is_dead("w")


def test_names_of_workers_are_no_paths(path: Path, locks: WorkerLocks) -> None:
    locks.hold("../a b/c")
    assert [file.parent for file in path.parent.iterdir()] == [path.parent]


def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    locks = WorkerLocks(tmp_path / "none" / "x.db")
    with pytest.raises(FileNotFoundError):
        locks.hold("w")
    assert not locks.is_dead("w")
