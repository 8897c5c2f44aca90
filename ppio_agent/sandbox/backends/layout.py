"""What a sandbox finds around it: environment and files.

Nothing of the host's environment gets in; what is here is all there is.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from attrs import frozen

from .base import SandboxSpec

__all__ = ["Layout", "environment", "search_path", "write_base"]

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_PYTHON = """\
#!/bin/sh
exec {python} "$@"
"""

_SUDO = """\
#!/bin/sh
# Stands in for sudo: its own options are dropped, the command runs as it is.
while [ $# -gt 0 ]; do
    case "$1" in
        --) shift; break ;;
        -[CDghpRrTtUu]) shift; [ $# -eq 0 ] || shift ;;
        -*) shift ;;
        *) break ;;
    esac
done
[ $# -eq 0 ] || exec env "$@"
"""

# The profiles of the system have just set PATH anew.
_BASH_PROFILE = """\
export PATH={path}
cd() {{
    local arg args=()
    for arg in "$@"; do
        case "$arg" in
            /app) arg={app} ;;
            /app/*) arg={app}"${{arg#/app}}" ;;
        esac
        args+=("$arg")
    done
    builtin cd "${{args[@]}}"
}}
"""


def environment(
    spec: SandboxSpec, *, path: str, home: str, tmp: str, port: int
) -> Mapping[str, str]:
    """Return the whole environment of every process of a sandbox. Pure.

    Args:
        spec: What the sandbox is; its `env` wins over all but the marker
            and where the agent listens.
        path: Where programs are looked for.
        home: The home folder, by its name inside.
        tmp: The folder for temporary files, by its name inside.
        port: Where the agent is asked to listen.
    """
    return {
        "PATH": path,
        "HOME": home,
        "USER": "user",
        "LOGNAME": "user",
        "LANG": "C.UTF-8",
        "TMPDIR": tmp,
        "PYTHONUNBUFFERED": "1",
        "PPIO_TEMPLATE_ID": spec.template_id,
        **spec.env,
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "PPIO_SANDBOX_ID": spec.sandbox_id,
    }


def search_path(programs: str) -> str:
    """Return the `PATH` of a sandbox whose own programs are in a folder. Pure."""
    return f"{programs}{os.pathsep}{_SYSTEM_PATH}"


def write_base(root: Path, folders: Iterable[str], python: str) -> None:
    """Make the folders of a sandbox, and what is in its `bin`: Python, and a `sudo`.

    Args:
        root: Its own folder.
        folders: Which of them there are, by name; those that are missing are made.
        python: The interpreter that `python` is inside.
    """
    for name in (*folders, "bin"):
        (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
    run_python = _PYTHON.format(python=shlex.quote(python))
    programs = {"python": run_python, "python3": run_python, "sudo": _SUDO}
    for name, text in programs.items():
        program = root / "bin" / name
        program.write_text(text, encoding="utf-8")
        program.chmod(0o700)


@frozen(kw_only=True)
class Layout:
    """The folders of one sandbox.

    Attributes:
        root: Its own folder, absolute.
    """

    root: Path

    @property
    def app(self) -> Path:
        """The files of the template: `/app` for those inside."""
        return self.root / "app"

    @property
    def home(self) -> Path:
        """The home folder."""
        return self.root / "home"

    @property
    def tmp(self) -> Path:
        """The folder for temporary files."""
        return self.root / "tmp"

    @property
    def agent_log(self) -> Path:
        """The newest file of the agent's log."""
        return self.root / "logs" / "agent.log"

    @property
    def supervisor_log(self) -> Path:
        """What the supervisor itself has to say; empty unless it fails."""
        return self.root / "logs" / "supervisor.log"

    def environment(self, spec: SandboxSpec, *, port: int) -> Mapping[str, str]:
        """Return the whole environment of every process of the sandbox.

        Args:
            spec: What the sandbox is.
            port: Where the agent is asked to listen.
        """
        return environment(
            spec, path=self._path, home=str(self.home), tmp=str(self.tmp), port=port
        )

    def write(self, python: str) -> None:
        """Make the folders and programs around `app`.

        Args:
            python: The interpreter that `python` is inside.
        """
        write_base(self.root, ("app", "home", "tmp", "logs"), python)
        profile = _BASH_PROFILE.format(
            path=shlex.quote(self._path), app=shlex.quote(str(self.app))
        )
        (self.home / ".bash_profile").write_text(profile, encoding="utf-8")

    @property
    def _path(self) -> str:
        return search_path(str(self.root / "bin"))
