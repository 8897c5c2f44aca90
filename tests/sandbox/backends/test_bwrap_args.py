"""What of the host a sandbox of bubblewrap sees, as arguments."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.sandbox.backends.bwrap_args import (
    OWN,
    Plan,
    arguments,
    interpreter_parts,
    package_part,
)

ROOT = Path("/data/sandboxes/a")
_FOLDERS = st.lists(
    st.lists(st.sampled_from(["usr", "opt", "a", "b", "lib"]), min_size=1, max_size=4),
    max_size=6,
).map(lambda found: ["/" + "/".join(parts) for parts in found])


def plan(**options: object) -> list[str]:
    settings: dict[str, object] = {"visible": (), "environment": {}, **options}
    return arguments(
        Plan(root=ROOT, command=["python"], info_fd=9, **settings)  # type: ignore[arg-type] # of any option
    )


def binds(found: list[str], kind: str) -> dict[str, str]:
    """Return what is mounted by an option: path inside → path of the host."""
    return {
        found[place + 2]: found[place + 1]
        for place, word in enumerate(found)
        if word == kind
    }


def test_only_the_sandboxs_own_folders_can_be_written() -> None:
    """Everything else is mounted read-only, the root at last."""
    found = plan()

    assert binds(found, "--bind") == {
        inside: str(ROOT / name) for name, inside in OWN.items()
    }
    for inside, outside in binds(found, "--ro-bind").items():
        assert outside.startswith(str(ROOT)), inside
    assert "--dev-bind" not in found
    assert found.index("--remount-ro") > max(
        place for place, word in enumerate(found) if word.endswith("bind")
    )


def test_of_etc_there_are_only_files_without_secrets() -> None:
    """Neither accounts nor keys of the host, nor any folder that holds some."""
    found = binds(plan(), "--ro-bind-try")
    of_etc = {path for path in found if path.startswith("/etc/")}

    assert "/etc" not in found
    assert not {"/etc/ssl", "/etc/pki", "/etc/pki/tls", "/etc/ssh"} & of_etc
    assert not any("private" in path or "shadow" in path for path in of_etc)
    assert "/etc/ssl/certs" in of_etc


def test_namespaces_are_all_new_and_every_right_is_dropped() -> None:
    """And the sandbox is not tied to the life of who started it."""
    found = plan()

    for kind in ("user", "pid", "ipc", "uts", "net"):
        assert f"--unshare-{kind}" in found
    assert found[found.index("--cap-drop") + 1] == "ALL"
    assert {"--as-pid-1", "--new-session", "--disable-userns"} <= set(found)
    assert not {"--die-with-parent", "--share-net", "--cap-add"} & set(found)
    assert "--disable-userns" not in plan(no_namespaces=False)


def test_the_environment_and_the_command_come_last() -> None:
    """What is started gets what it is given and nothing of the platform's."""
    found = plan(environment={"A": "1"})

    assert found[-5:] == ["--setenv", "A", "1", "--", "python"]


@settings(max_examples=100)
@given(visible=_FOLDERS, hidden=_FOLDERS)
def test_what_is_visible_is_mounted_once_and_what_is_hidden_over_it(
    visible: list[str], hidden: list[str]
) -> None:
    """A folder in another one needs no mount; a hidden one is empty if it is there."""
    found = plan(visible=visible, hidden=hidden)
    mounted = list(binds(found, "--ro-bind-try"))

    assert len(mounted) == len(set(mounted))
    for path in visible:
        outer = [m for m in mounted if Path(path).is_relative_to(m)]
        assert len(outer) == 1, path
    masked = {found[n + 1] for n, word in enumerate(found) if word == "--tmpfs"}
    for path in hidden:
        below = any(Path(path).is_relative_to(m) for m in mounted)
        assert (path in masked) is below
    fixed = {found[n + 1] for n, word in enumerate(found) if word == "--remount-ro"}
    assert fixed == {*masked, "/dev", "/"}  # no memory is used up by files there


def test_of_a_project_that_is_an_environment_only_the_environment_is_visible() -> None:
    """Its other files may be anything."""
    found = interpreter_parts("/home/me/project")

    assert "/home/me/project/lib" in found
    assert "/home/me/project" not in found


def test_a_package_that_is_used_from_its_source_is_visible_alone() -> None:
    """An installed one with what is installed beside it."""
    assert package_part("/home/me/p/ppio_agent/__init__.py") == "/home/me/p/ppio_agent"
    site = "/v/lib/python3.11/site-packages"
    assert package_part(f"{site}/ppio_agent/__init__.py") == site
