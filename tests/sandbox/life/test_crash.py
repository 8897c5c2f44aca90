"""Real processes outlive a platform that is killed, and go on with the next one."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import attrs
import pytest

from ppio_agent.sandbox.config import PlatformConfig
from ppio_agent.sandbox.datadir import DataDir
from ppio_agent.sandbox.life.recovery import kill_marked
from ppio_agent.sandbox.platform import SandboxPlatform
from tests.sandbox.agents import HTTP_AGENT, write_agent
from tests.sandbox.cloud import PlatformProcess
from tests.support import SLOW, needs_program, processes_marked, wait_until

FLED = """\
import os, subprocess
os.environ["CHILD"] = str(
    subprocess.Popen(["sleep", "1000"], start_new_session=True).pid
)
"""


@contextmanager
def _five(folder: Path, **settings: Any) -> Iterator[tuple[PlatformProcess, list[str]]]:
    """A platform with five sandboxes: the first is paused, the last has a child that
    has fled from its session."""
    agents = [
        write_agent(folder, "echo"),
        write_agent(folder, "fled", {"app.py": FLED + HTTP_AGENT}),
    ]
    platform = PlatformProcess(folder, *agents, **settings).start()
    ids: list[str] = []
    try:
        ids += [platform.create("echo", timeout=600) for _ in range(4)]
        ids.append(platform.create("fled", timeout=600, once="fled"))
        for sandbox_id in ids:
            assert platform.agent(sandbox_id).json()["count"] == 1
        assert platform.ask("POST", f"/sandboxes/{ids[0]}/pause").status_code == 204
        yield platform, ids
    finally:
        platform.discard()
        kill_marked(ids)


def _left(ids: list[str]) -> dict[str, list[int]]:
    marked = {sandbox_id: list(processes_marked(sandbox_id)) for sandbox_id in ids}
    return {sandbox_id: pids for sandbox_id, pids in marked.items() if pids}


@pytest.fixture(params=["process", "bubblewrap"])
def backend(request: pytest.FixtureRequest) -> str:
    """The name of each backend that this machine has."""
    if request.param == "bubblewrap":
        needs_program("bwrap")
    return str(request.param)


def test_a_platform_that_is_started_again_goes_on_with_all(
    tmp_path: Path, backend: str
) -> None:
    """Acceptance 9: same ids, tokens and memory; the paused one is paused."""
    with _five(tmp_path, backend=backend, orphan_grace=20) as (platform, ids):
        before = {i: platform.ask("GET", f"/sandboxes/{i}").json() for i in ids}
        child = platform.agent(ids[-1]).json()["env"]["CHILD"]
        pids = _left(ids)
        platform.kill()
        begun = time.monotonic()
        platform.start()
        assert time.monotonic() - begun < 10 * SLOW

        listed = platform.ask("GET", "/v2/sandboxes").json()
        assert {s["sandboxID"] for s in listed} == set(ids)
        # Whoever did not hear the answer asks again.
        assert platform.create("fled", timeout=600, once="fled") == ids[-1]
        for sandbox_id in ids[1:]:
            after = platform.ask("GET", f"/sandboxes/{sandbox_id}").json()
            assert after == {**before[sandbox_id], "edgeURL": platform.url}
        assert [platform.agent(i).json()["count"] for i in ids[1:]] == [2, 2, 2, 3]
        assert platform.agent(ids[0]).status_code == 502
        paused = platform.ask("GET", f"/sandboxes/{ids[0]}").json()
        assert paused["state"] == "paused"
        resumed = platform.ask("POST", f"/sandboxes/{ids[0]}/connect")
        assert resumed.status_code == 201
        assert platform.agent(ids[0]).json()["count"] == 2
        assert platform.agent(ids[-1]).json()["env"]["CHILD"] == child
        os.kill(int(child), 0)
        assert _left(ids) == pids
        assert platform.ask("DELETE", f"/sandboxes/{ids[1]}").status_code == 204
        assert _left(ids[1:2]) == {}
        platform.close()

        assert _left(ids) == {}
        assert list((platform.data / "sandboxes").iterdir()) == []


def test_not_started_again_nothing_is_left_after_the_grace(
    tmp_path: Path, backend: str
) -> None:
    """Acceptance 9; a later platform buries what there was."""
    with _five(tmp_path, backend=backend, orphan_grace=1) as (platform, ids):
        platform.kill()
        begun = time.monotonic()
        wait_until(lambda: _left(ids) == {}, timeout=1 + 5, what=str(_left(ids)))
        assert time.monotonic() - begun > 0.5

    with SandboxPlatform(PlatformConfig(data_dir=tmp_path / "data")) as later:
        assert later.sandboxes.list_sandboxes() == []
        assert list((tmp_path / "data" / "sandboxes").iterdir()) == []
        assert all(later.sandboxes.logs_of(sandbox_id).is_dir() for sandbox_id in ids)


def test_a_platform_that_cannot_start_leaves_them_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its address, or on a full disk, it could only end them."""
    with (
        _five(tmp_path, backend="process", orphan_grace=20) as (platform, ids),
        socket.create_server(("127.0.0.1", 0)) as taken,
    ):
        platform.kill()
        config = PlatformConfig(
            data_dir=platform.data, backend="process", port=taken.getsockname()[1]
        )
        with pytest.raises(OSError, match="taken"):
            SandboxPlatform(config).start()
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with monkeypatch.context() as patch:
            patch.setattr(DataDir, "announce", Mock(side_effect=full))
            with pytest.raises(OSError, match="space"):
                SandboxPlatform(attrs.evolve(config, port=0)).start()
        platform.start()

        assert [platform.agent(i).json()["count"] for i in ids[1:]] == [2, 2, 2, 2]
        platform.close()
