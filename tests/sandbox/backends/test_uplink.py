"""Helpers that connect a sandbox; `test_security` has what they must not connect it to."""

from __future__ import annotations

from pathlib import Path

import pytest

from ppio_agent.sandbox.backends.uplink import Helper, find_helpers, resolver


def _add(folder: Path, name: str) -> None:
    program = folder / name
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)


def test_pasta_is_the_better_helper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are looked for where administrators have programs, too."""
    path, admin = tmp_path / "bin", tmp_path / "sbin"
    path.mkdir()
    admin.mkdir()
    monkeypatch.setattr("ppio_agent.sandbox.backends.uplink._ADMIN_PATH", str(admin))
    assert find_helpers(str(path)) == ()

    _add(path, "slirp4netns")
    _add(admin, "pasta")
    assert [(h.name, Path(h.path).parent) for h in find_helpers(str(path))] == [
        ("pasta", admin),
        ("slirp4netns", path),
    ]


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("pasta", ["--no-map-gw", "-t", "-u", "-T", "-U"]),
        ("slirp4netns", ["--disable-host-loopback"]),
    ],
)
def test_no_helper_maps_the_loopback_of_the_host(name: str, needed: list[str]) -> None:
    """Neither to the gateway nor port by port."""
    command = Helper(name=name, path=f"/usr/bin/{name}").command(uid=1000)

    assert command[0] == f"/usr/bin/{name}"
    assert set(needed) <= set(command)
    for option in {"-t", "-u", "-T", "-U"} & set(command):
        assert command[command.index(option) + 1] == "none"


def test_pasta_stays_root_where_root_starts_it() -> None:
    """The user that it would become may not enter the namespace."""
    pasta = Helper(name="pasta", path="pasta")

    assert "--runas" in pasta.command(uid=0)
    assert "--runas" not in pasta.command(uid=1000)


def test_names_are_asked_of_the_helper_in_the_domains_of_the_host() -> None:
    """Its own name server may be one of its loopback."""
    text = resolver(
        "# made by a program\nnameserver 127.0.0.53\n\noptions edns0\nsearch a.test b\n"
    )

    assert text.splitlines() == [
        "nameserver 10.0.2.3",
        "options edns0",
        "search a.test b",
    ]
    assert resolver("") == "nameserver 10.0.2.3\n"
