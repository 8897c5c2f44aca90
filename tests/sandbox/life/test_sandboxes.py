"""All sandboxes: limits, folders and rows, and nothing left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import pytest

from ppio_agent.exceptions import (
    NotFoundError,
    SandboxLimitError,
    SandboxPlatformError,
    SandboxStartError,
    ServerBusyError,
    ServiceUnavailableError,
    TemplateNotFoundError,
)
from ppio_agent.sandbox.life import roster
from ppio_agent.sandbox.life.machine import EndReason
from ppio_agent.sandbox.life.options import CreateOptions
from ppio_agent.storage import Put, open_store
from tests.sandbox.rig import PlatformRig
from tests.support import SLOW, wait_until

ECHO = CreateOptions(template="echo")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[PlatformRig]:
    made = PlatformRig(tmp_path, max_sandboxes_per_tenant=3, max_sandboxes=4)
    yield made
    made.close()


def _folders(rig: PlatformRig) -> list[str]:
    return sorted(path.name for path in (rig.folder / "sandboxes").iterdir())


def test_a_sandbox_gets_its_files_its_row_and_its_limits(rig: PlatformRig) -> None:
    """The row is there before the first process."""
    rows: list[int] = []
    rig.backend.before_start = lambda: rows.append(len(rig.store.scan("sandbox")))

    sandbox = rig.sandboxes.create(
        CreateOptions(template="echo", env={"K": "v"}), tenant="red"
    )

    spec = rig.backend.last.spec
    assert rows == [1]
    assert (spec.sandbox_id, spec.template_id) == (sandbox.id, rig.echo.id)
    assert (spec.root / "app" / "app.py").is_file()
    assert (spec.entrypoint, spec.env, spec.start_timeout) == ("app.py", {"K": "v"}, 20)
    assert spec.access_token == sandbox.identity.access_token
    assert rig.sandboxes.owner_of(spec.access_token or "") == sandbox.id
    assert rig.templates.get("echo", tenant="red").spawn_count == 1


def test_the_environment_of_one_that_starts_is_not_removed_with_its_template(
    rig: PlatformRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing says that it is in use before there is a row."""
    record, build = rig.templates.choose("echo", tenant="red")
    build = attrs.evolve(build, environment="0" * 64)
    python = rig.folder / "environments" / ("0" * 64) / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setattr(rig.templates, "choose", lambda *_, **__: (record, build))
    there: list[bool] = []

    def delete() -> None:
        rig.templates.delete("echo", tenant="red")
        there.append(python.exists())

    rig.backend.before_start = delete
    rig.sandboxes.create(ECHO, tenant="red")

    assert rig.backend.last.spec.python == str(python)
    assert there == [True]


def test_one_that_runs_is_told_of_even_if_its_start_is_not_counted(
    rig: PlatformRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its caller could not end it otherwise."""

    def fail(*_: object) -> None:
        raise OSError(28, "no space left")

    monkeypatch.setattr(rig.templates, "note_spawn", fail)
    sandbox = rig.sandboxes.create(ECHO, tenant="red")

    assert rig.sandboxes.list_sandboxes() == [sandbox]
    assert f"sandbox {sandbox.id} is not counted" in caplog.text


@pytest.mark.parametrize("setting", ["off", "enforce"])
def test_a_sandbox_is_told_what_becomes_of_commands_out_of_time(
    tmp_path: Path, setting: str
) -> None:
    """As the platform is set."""
    rig = PlatformRig(tmp_path, command_deadline=setting)
    rig.sandboxes.create(ECHO, tenant="red")

    assert rig.backend.last.spec.command_deadline == setting
    rig.close()


def test_a_token_still_names_its_sandbox_after_the_end(
    rig: PlatformRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the newest only: callers that know nothing else are told that it has ended."""
    monkeypatch.setattr(roster, "_REMEMBERED", 1)
    tokens = {}
    for _ in range(2):
        sandbox = rig.sandboxes.create(ECHO, tenant="red")
        tokens[sandbox.id] = sandbox.identity.access_token or ""
        rig.sandboxes.kill(sandbox.id)
        assert rig.sandboxes.owner_of(tokens[sandbox.id]) == sandbox.id
        assert rig.sandboxes.find(sandbox.id) is None
    assert [rig.sandboxes.owner_of(token) for token in tokens.values()] == [
        None,
        sandbox.id,
    ]


def test_a_killed_sandbox_leaves_its_logs_only(rig: PlatformRig) -> None:
    sandbox = rig.sandboxes.create(ECHO, tenant="red")
    root = rig.backend.last.spec.root
    (root / "logs" / "agent.log").write_text("hello")
    rig.sandboxes.kill(sandbox.id, tenant="red")

    assert (_folders(rig), rig.store.scan("sandbox")) == ([], ())
    logs = rig.sandboxes.logs_of(sandbox.id, tenant="red")
    assert (logs / "agent.log").read_text() == "hello"
    with pytest.raises(NotFoundError):
        rig.sandboxes.kill(sandbox.id)
    with pytest.raises(NotFoundError):
        rig.sandboxes.logs_of(sandbox.id, tenant="blue")


def test_logs_are_there_while_a_sandbox_is_being_killed(rig: PlatformRig) -> None:
    """Just then one looks at them."""
    sandbox = rig.sandboxes.create(ECHO, tenant="red")
    logs = rig.sandboxes.logs_of(sandbox.id, tenant="red")
    seen: list[Path] = []

    def look() -> None:
        seen.append(rig.sandboxes.logs_of(sandbox.id, tenant="red"))
        with pytest.raises(NotFoundError):
            rig.sandboxes.logs_of(sandbox.id, tenant="blue")

    rig.backend.last.during["kill"] = look
    rig.sandboxes.kill(sandbox.id)

    assert seen == [logs]


def test_who_finds_no_slot_is_told_of_one_that_is_just_becoming_free(
    rig: PlatformRig,
) -> None:
    *_, last = [rig.sandboxes.create(ECHO, tenant="red") for _ in range(3)]
    hints: list[float | None] = []

    def ask() -> None:
        with pytest.raises(SandboxLimitError) as info:
            rig.sandboxes.create(ECHO, tenant="red")
        hints.append(info.value.retry_after)

    rig.backend.last.during["kill"] = ask
    rig.sandboxes.kill(last.id)

    assert hints == [1.0]


def test_a_tenant_has_its_limit_and_a_kill_frees_a_slot(rig: PlatformRig) -> None:
    made = [rig.sandboxes.create(ECHO, tenant="red") for _ in range(3)]
    with pytest.raises(SandboxLimitError) as info:
        rig.sandboxes.create(ECHO, tenant="red")
    assert info.value.retry_after == 60
    made[0].set_timeout(5)
    with pytest.raises(SandboxLimitError) as info:
        rig.sandboxes.create(ECHO, tenant="red")
    assert info.value.retry_after == 5

    rig.sandboxes.create(CreateOptions(), tenant="blue")
    with pytest.raises(ServerBusyError):
        rig.sandboxes.create(CreateOptions(), tenant="blue")
    rig.sandboxes.kill(made[0].id)
    rig.sandboxes.create(ECHO, tenant="red")


def test_paused_sandboxes_count(rig: PlatformRig) -> None:
    for _ in range(3):
        rig.sandboxes.create(ECHO, tenant="red").pause()

    with pytest.raises(SandboxLimitError):
        rig.sandboxes.create(ECHO, tenant="red")
    assert rig.sandboxes.counts() == {"running": 0, "paused": 3}


def test_the_slot_is_free_only_after_the_last_process(rig: PlatformRig) -> None:
    made = [rig.sandboxes.create(ECHO, tenant="red") for _ in range(3)]
    go_on = threading.Event()
    rig.backend.last.during["kill"] = lambda: go_on.wait(5)
    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(rig.sandboxes.kill, made[-1].id)
        wait_until(lambda: made[-1].doomed)
        assert rig.sandboxes.find(made[-1].id) is None
        with pytest.raises(SandboxLimitError):
            rig.sandboxes.create(ECHO, tenant="red")
        go_on.set()
        killing.result(5)
    rig.sandboxes.create(ECHO, tenant="red")


def test_a_start_that_fails_leaves_no_slot_folder_or_row(rig: PlatformRig) -> None:
    rig.backend.fails = True
    for _ in range(5):
        with pytest.raises(SandboxStartError, match="no room"):
            rig.sandboxes.create(ECHO, tenant="red")

    assert (_folders(rig), rig.store.scan("sandbox")) == ([], ())
    assert rig.sandboxes.list_sandboxes() == []


def test_what_cannot_be_made_takes_no_slot(rig: PlatformRig) -> None:
    with pytest.raises(TemplateNotFoundError):
        rig.sandboxes.create(CreateOptions(template="none"), tenant="red")
    with pytest.raises(SandboxPlatformError, match="cannot block network") as info:
        rig.sandboxes.create(CreateOptions(allow_internet=False), tenant="red")

    assert info.value.http_status == 501
    assert rig.backend.started == []


def test_tenants_see_their_own(rig: PlatformRig) -> None:
    mine = rig.sandboxes.create(ECHO, tenant="red")
    other = rig.sandboxes.create(CreateOptions(), tenant="blue")

    assert rig.sandboxes.list_sandboxes(tenant="red") == [mine]
    assert rig.sandboxes.list_sandboxes() == [mine, other]
    assert rig.sandboxes.get(mine.id, tenant="red") is mine
    for ask in (rig.sandboxes.get, rig.sandboxes.kill):
        with pytest.raises(NotFoundError):
            ask(other.id, tenant="red")


def test_close_ends_everything_and_refuses_more(rig: PlatformRig) -> None:
    made = [rig.sandboxes.create(ECHO, tenant="red") for _ in range(3)]
    rig.sandboxes.close(5.0)
    rig.sandboxes.close(5.0)

    assert [s.life.reason for s in made] == [EndReason.SHUTDOWN] * 3
    assert [s.log for s in rig.backend.started] == [["kill 2.5"]] * 3
    assert (_folders(rig), rig.backend.closed) == ([], 1)
    with pytest.raises(ServiceUnavailableError, match="is stopping"):
        rig.sandboxes.create(ECHO, tenant="red")


def test_close_is_bounded_by_a_sandbox_that_does_not_end(rig: PlatformRig) -> None:
    rig.sandboxes.create(ECHO, tenant="red")
    go_on = threading.Event()
    rig.backend.last.during["kill"] = lambda: go_on.wait(5)
    closed = threading.Event()

    def close() -> None:
        rig.sandboxes.close(0.2)
        closed.set()

    thread = threading.Thread(target=close)
    thread.start()
    assert closed.wait(5 * SLOW)
    go_on.set()
    thread.join()


def test_what_a_crash_left_is_cleared_away(tmp_path: Path) -> None:
    store = open_store("memory://")
    row = {"tenant": "red", "template_id": "t", "build_id": "b"}
    store.write(Put("sandbox", "old", row))
    for path in ("old/app/x", "old/logs/agent.log", "unknown/app/x"):
        file = tmp_path / "sandboxes" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("left")

    rig = PlatformRig(tmp_path, store=store)

    try:
        assert (_folders(rig), store.scan("sandbox")) == ([], ())
        logs = rig.sandboxes.logs_of("old", tenant="red")
        assert (logs / "agent.log").read_text() == "left"
    finally:
        rig.close()
