"""Which backend a platform gets, on machines that have this and lack that."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppio_agent.exceptions import BackendUnavailableError, SandboxPlatformError
from ppio_agent.sandbox.backends.base import Backend
from ppio_agent.sandbox.backends.bubblewrap import Grounds
from ppio_agent.sandbox.backends.choice import choose_backend
from tests.support import needs_program, new_threads, wait_until


class Machine:
    """A `PATH` with some programs, and a place for a backend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "programs"
        self.programs.mkdir()
        self.sockets = Path(tempfile.mkdtemp())
        self.place = Grounds(blank=folder / "blank", sockets=self.sockets)
        self.backends: list[Backend] = []

    def add(self, name: str, script: str = "exit 1") -> None:
        program = self.programs / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def add_real(self, name: str) -> None:
        (self.programs / name).symlink_to(needs_program(name))

    def choose(self, name: str, *, warm: int = 0, tun: str = os.devnull) -> Backend:
        backend = choose_backend(
            name,
            self.place,
            hidden=self.folder,
            warm=warm,
            environ={"PATH": str(self.programs)},
            tun=tun,
        )
        self.backends.append(backend)
        return backend

    def close(self) -> None:
        for backend in self.backends:
            backend.close()
        left = list(self.sockets.iterdir())
        shutil.rmtree(self.sockets)
        assert left == []


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """One on which there is nothing, not even in the administrator's folders."""
    monkeypatch.setattr(
        "ppio_agent.sandbox.backends.uplink._ADMIN_PATH", str(tmp_path / "none")
    )
    machine = Machine(tmp_path)
    yield machine
    machine.close()


REFUSAL = "echo 'bwrap: setting up uid map: Permission denied' >&2; exit 1"


def test_processes_are_what_was_asked_for(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is tried, and nothing said."""
    machine.add("bwrap", "touch $0.tried")

    assert machine.choose("process").name == "process"
    assert caplog.text == ""
    assert not (machine.programs / "bwrap.tried").exists()


def test_a_machine_with_everything_gets_bubblewrap(machine: Machine) -> None:
    """After a sandbox was made, reached and ended, of which nothing is left."""
    machine.add_real("bwrap")
    machine.add_real("pasta")
    backend = machine.choose("auto")

    assert backend.name == "bubblewrap"
    assert list(machine.place.blank.iterdir()) == []


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({}, "pasta nor slirp4netns"),
        ({"bwrap": "exit 0"}, "pasta nor slirp4netns"),
        ({"pasta": "exit 0"}, "bwrap is not installed"),
        ({"bwrap": REFUSAL, "slirp4netns": "exit 0"}, "uid map: Permission denied"),
        ({"bwrap": "exec sleep 0", "pasta": "exit 0"}, "could not be started"),
    ],
)
def test_a_machine_that_lacks_something_gets_processes(
    machine: Machine,
    caplog: pytest.LogCaptureFixture,
    programs: dict[str, str],
    reason: str,
) -> None:
    """One line of the log says why."""
    for name, script in programs.items():
        machine.add(name, script)

    assert machine.choose("auto").name == "process"
    assert [reason in record.getMessage() for record in caplog.records] == [True]
    assert "plain processes" in caplog.text


def test_a_helper_that_cannot_connect_is_as_none(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """Else no sandbox could be made but those that do without the network."""
    machine.add_real("bwrap")
    script = "echo Failed to send 45 bytes to syslog; echo no route; echo no name"
    machine.add("pasta", f"{{ {script}; }} >&2; exit 1")

    assert machine.choose("auto").name == "process"
    (said,) = [record.getMessage() for record in caplog.records]
    assert "another: no route; no name; ppio-agent doctor" in said
    assert machine.choose("bubblewrap").name == "bubblewrap"


def test_a_helper_whose_device_may_not_be_opened_is_as_none(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    """It is known before anything is made, with what can be done."""
    machine.add_real("bwrap")
    machine.add("pasta", "touch $0.tried")
    tun = str(machine.folder / "tun")

    assert machine.choose("auto", tun=tun).name == "process"
    assert f"the network of sandboxes needs {tun}: modprobe tun" in caplog.text
    backend = machine.choose("bubblewrap", tun=tun)
    with pytest.raises(SandboxPlatformError, match=f"needs {tun}: modprobe") as caught:
        backend.check(allow_internet=True)
    assert caught.value.http_status == 501
    backend.check(allow_internet=False)
    assert not (machine.programs / "pasta.tried").exists()


def test_bubblewrap_that_was_asked_for_and_does_not_work_is_an_error(
    machine: Machine,
) -> None:
    """With what bwrap says and the usual cause; no helper is asked for."""
    machine.add("bwrap", REFUSAL)

    with pytest.raises(BackendUnavailableError) as caught:
        machine.choose("bubblewrap")
    assert "bwrap: setting up uid map: Permission denied" in str(caught.value)
    assert "user namespaces" in str(caught.value)
    assert not machine.place.blank.exists()

    (machine.programs / "bwrap").unlink()
    with pytest.raises(BackendUnavailableError, match="bwrap is not installed"):
        machine.choose("bubblewrap")


def test_a_bwrap_that_is_setuid_is_refused(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what to do; it is not run."""
    machine.add("bwrap", "touch $0.tried")
    (machine.programs / "bwrap").chmod(0o4755)
    monkeypatch.setattr("os.geteuid", lambda: 1000)

    with pytest.raises(BackendUnavailableError, match="chmod u-s"):
        machine.choose("bubblewrap")
    assert not (machine.programs / "bwrap.tried").exists()


def test_bubblewrap_without_a_helper_makes_sandboxes_without_internet(
    machine: Machine,
) -> None:
    """Others are refused with the names of the programs and what else can be done."""
    machine.add_real("bwrap")
    backend = machine.choose("bubblewrap")

    backend.check(allow_internet=False)
    with pytest.raises(SandboxPlatformError) as caught:
        backend.check(allow_internet=True)
    assert caught.value.http_status == 501
    for word in ("pasta", "slirp4netns", "allow_internet_access=false"):
        assert word in str(caught.value)


def test_blank_sandboxes_are_kept_ready_from_then_on(machine: Machine) -> None:
    """And none is left when the backend is closed."""
    threads = new_threads("ppio-sandbox-warm")
    machine.add_real("bwrap")
    backend = machine.choose("bubblewrap", warm=1)
    wait_until(lambda: len(os.listdir(machine.sockets)) == 1, timeout=10.0)

    backend.close()
    assert threads() == []
    assert not machine.place.blank.exists()


@pytest.mark.parametrize("warm", [0, 1])
def test_the_zygote_begins_with_the_platform_if_anything_is_kept_ready(
    machine: Machine, warm: int
) -> None:
    """With `warm=0` it waits for the first sandbox."""
    threads = new_threads("ppio-zygote-")
    machine.choose("process", warm=warm)

    assert len(threads()) == warm
