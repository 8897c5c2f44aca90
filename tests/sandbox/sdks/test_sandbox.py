"""`Sandbox` of `ppio-sandbox` 2.1.0 and of `e2b` 2.63.0, unmodified, over plain HTTP.

Acceptance 2. What each test does is the function of its name in `scripts/sandbox.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from tests.sandbox.agents import write_agent
from tests.sandbox.sdks.peer import Peer
from tests.support import needs_program

ROOT = Path(__file__).parents[3]

COVERED = frozenset({
    "Sandbox.create", "Sandbox.connect", "Sandbox.get_host", "Sandbox.get_info",
    "Sandbox.get_metrics", "Sandbox.is_running", "Sandbox.kill", "Sandbox.list",
    "Sandbox.pause", "Sandbox.set_timeout", "Sandbox.download_url",
    "Sandbox.upload_url", "Sandbox.beta_create", "Sandbox.beta_pause",
    "Commands.run", "Commands.connect", "Commands.kill", "Commands.list",
    "Commands.send_stdin", "Commands.close_stdin",
    "CommandHandle.wait", "CommandHandle.disconnect", "CommandHandle.kill",
    "CommandHandle.send_stdin", "CommandHandle.close_stdin",
    "Filesystem.exists", "Filesystem.get_info", "Filesystem.list",
    "Filesystem.make_dir", "Filesystem.read", "Filesystem.remove",
    "Filesystem.rename", "Filesystem.write", "Filesystem.write_files",
    "Template.exists", "Template.alias_exists", "Template.list", "Template.get",
    "Template.delete",
})  # fmt: skip
"""The calls that these tests make and that do what they do in the cloud."""

_NOT_LOCAL = "the local platform answers 501 or `unimplemented`"
LEFT_OUT = {
    "Sandbox.create_snapshot": _NOT_LOCAL,
    "Sandbox.list_snapshots": _NOT_LOCAL,
    "Sandbox.delete_snapshot": _NOT_LOCAL,
    "Sandbox.fork": _NOT_LOCAL,
    "Sandbox.clone": _NOT_LOCAL,
    "Sandbox.commit": _NOT_LOCAL,
    "Sandbox.reset": _NOT_LOCAL,
    "Sandbox.hotplug_memory": _NOT_LOCAL,
    "Sandbox.resize": _NOT_LOCAL,
    "Sandbox.set_network": _NOT_LOCAL,
    "Sandbox.update_network": _NOT_LOCAL,
    "Sandbox.get_quota": _NOT_LOCAL,
    "Sandbox.get_events": _NOT_LOCAL,
    "Sandbox.mount_volume": _NOT_LOCAL,
    "Sandbox.unmount_volume": _NOT_LOCAL,
    "Sandbox.get_mcp_token": _NOT_LOCAL,
    "Sandbox.get_mcp_url": _NOT_LOCAL,
    "Filesystem.watch_dir": _NOT_LOCAL,
    "Pty.create": _NOT_LOCAL,
    "Pty.connect": _NOT_LOCAL,
    "Pty.kill": _NOT_LOCAL,
    "Pty.resize": _NOT_LOCAL,
    "Pty.send_stdin": _NOT_LOCAL,
    "Pty.stream_input": _NOT_LOCAL,
    "Commands.stream_input": _NOT_LOCAL,
    "Template.build": _NOT_LOCAL,
    "Template.build_in_background": _NOT_LOCAL,
    "Template.assign_tags": _NOT_LOCAL,
    "Template.get_tags": _NOT_LOCAL,
    "Template.remove_tags": _NOT_LOCAL,
}
"""The calls that are not covered, and why."""


@pytest.fixture(
    scope="module",
    # Without a domain `ppio-sandbox` spells as its first version did.
    params=[
        ("ppio-2", "process", False),
        ("ppio-2", "bubblewrap", True),
        ("e2b", "process", False),
    ],
    ids=["ppio-2 as of old", "ppio-2", "e2b"],
)
def peer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Peer]:
    package, backend, has_domain = request.param
    if backend == "bubblewrap":
        needs_program("bwrap")
        needs_program("pasta")
    folder = tmp_path_factory.mktemp("platform")
    with SandboxPlatform(PlatformConfig(data_dir=folder, backend=backend)) as platform:
        env = {"PPIO_DOMAIN": platform.domain} if has_domain else {}
        with Peer(package, "sandbox", platform, {"BACKEND": backend, **env}) as peer:
            peer.do("begin")
            yield peer
            peer.do("end")


@pytest.mark.parametrize(
    "name",
    [
        "created_with_what_was_asked_for",
        "listed_page_by_page",
        "open_to_everybody",
        "closed_to_who_has_no_traffic_token",
        "cut_off_from_the_internet",
        "killed_twice",
        "paused_twice_and_connected",
        "not_found_after_its_end",
        "ends_when_its_time_is_over",
        "paused_when_its_time_is_over",
        "refused_by_the_control_plane",
        "runs_commands",
        "gives_up_a_command_in_time",
        "runs_commands_in_the_background",
        "keeps_files",
        "keeps_folders",
        "signs_urls_of_files",
        "says_what_there_is_not",
        "serves_the_asynchronous_twin",
        "measured",
    ],
)
def test_a_sandbox_is(peer: Peer, name: str) -> None:
    """As in the cloud; nothing of it is left."""
    before = peer.platform.sandboxes.list_sandboxes()
    peer.do(name)
    assert peer.platform.sandboxes.list_sandboxes() == before


def test_an_agent_is_reached_by_its_host_name(peer: Peer, tmp_path: Path) -> None:
    """The name that `get_host` gives; over plain HTTP it is a header."""
    template = peer.platform.deploy(write_agent(tmp_path, "hosted"))
    peer.do("reached_by_its_host_name", template=template.template_id)


def test_templates_are_found_and_deleted(peer: Peer, tmp_path: Path) -> None:
    """Those that were deployed, for a package cannot build them here."""
    peer.platform.deploy(write_agent(tmp_path, "found"))
    peer.do("finds_templates", alias="found")


def test_every_call_is_covered_or_said_not_to_be(peer: Peer) -> None:
    """A new version of a package with more calls fails here."""
    assert set(peer.do("public_calls")) <= COVERED | set(LEFT_OUT)
    assert not COVERED & set(LEFT_OUT)


def test_the_documentation_names_the_same_calls() -> None:
    """All of both tables, each in the right one."""
    page = (ROOT / "docs" / "wire.md").read_text()
    section = page.partition("## Published clients")[2].partition("\n## ")[0]
    done, _, left_out = section.partition("These are not covered")
    left_out = left_out.partition("What takes care")[0]
    assert set(re.findall(r"`([A-Z]\w+\.\w+)`", done)) == COVERED
    named = {call for row in left_out.splitlines() for call in _first_cell(row)}
    assert named == set(LEFT_OUT)


def _first_cell(row: str) -> list[str]:
    return re.findall(r"`([A-Z]\w+\.\w+)`", row.split("|")[1]) if "|" in row else []
