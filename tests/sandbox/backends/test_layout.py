"""Files and environment around a sandbox. What they do is seen in `test_envd`."""

from __future__ import annotations

import stat
from pathlib import Path

from ppio_agent.sandbox.backends.base import LineAddress, SandboxSpec
from ppio_agent.sandbox.backends.layout import Layout


def test_folders_and_programs_are_the_owners_alone(tmp_path: Path) -> None:
    """Nobody else on the machine may look in; `app` is left as it is."""
    root = tmp_path / "it's here"
    (root / "app").mkdir(parents=True)
    (root / "app" / "app.py").write_text("x")
    layout = Layout(root=root)
    layout.write("/usr/bin/python3")
    layout.write("/usr/bin/python3")

    for name in ("home", "tmp", "bin", "logs"):
        assert stat.S_IMODE((root / name).stat().st_mode) == 0o700
    assert {"python", "python3", "sudo"} == {f.name for f in (root / "bin").iterdir()}
    assert (layout.app / "app.py").read_text() == "x"


def test_the_environment_of_the_caller_wins_but_for_what_the_platform_needs(
    tmp_path: Path,
) -> None:
    """The marker is how a sweep finds a process; the rest is how it is reached."""
    spec = SandboxSpec(
        sandbox_id="a" * 20,
        template_id="t",
        root=tmp_path,
        line=LineAddress(path="", secret=""),
        env={"USER": "me", "HOST": "::", "PORT": "1", "PPIO_SANDBOX_ID": "b"},
    )
    env = Layout(root=tmp_path).environment(spec, port=5000)

    assert (env["USER"], env["PPIO_SANDBOX_ID"]) == ("me", "a" * 20)
    assert (env["HOST"], env["PORT"]) == ("127.0.0.1", "5000")
