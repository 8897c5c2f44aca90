"""What every supervisor is started with, whichever backend starts it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from .base import SandboxSpec

__all__ = [
    "boot_message",
    "import_paths",
    "package_origins",
    "read_tail",
    "secrets_message",
    "supervisor_command",
]

_NEEDED = ("ppio_agent", "h11", "attrs", "psutil")
_TAIL = 4096

# Isolated and without `site`: neither the environment nor the files of the user change
# what a supervisor is, and it starts in half the time.
_COLD = (
    "import sys; sys.path += sys.argv[COUNT:]; from MODULE import main;"
    " main(*map(int, sys.argv[1:COUNT]))"
)
# As any program of the interpreter starts, for agents are to be forks of it. The first
# entry of the path would be the current folder. What is loaded by then is what any
# program finds.
_WARM = """\
import sys
del sys.path[0]
fresh = tuple(sys.modules)
try:
    from MODULE import main
except ModuleNotFoundError as exc:
    sys.exit(f"{exc} for programs of {sys.executable}, agents among them: install it"
             " there, for PYTHONPATH and the current folder are not handed on")
main(*map(int, sys.argv[1:]), fresh)
"""


def boot_message(
    spec: SandboxSpec,
    *,
    env: Mapping[str, str],
    home: str,
    app: str,
    tmp: str,
    log: str,
    port: int,
    confined: bool,
) -> Mapping[str, Any]:
    """Return the fields of the supervisor's `Boot`, which says what they are. Pure."""
    return {
        "sandbox_id": spec.sandbox_id,
        "orphan_grace": spec.orphan_grace,
        "env": dict(env),
        "home": home,
        "app": app,
        "tmp": tmp,
        "confined": confined,
        "log": log,
        "entrypoint": spec.entrypoint,
        "python": spec.python or sys.executable,
        "port": port,
        "start_timeout": spec.start_timeout,
        "memory_bytes": spec.memory_mb * 1024 * 1024,
        "cpus": spec.cpus,
        "command_deadline": spec.command_deadline,
    }


def secrets_message(spec: SandboxSpec) -> Mapping[str, Any]:
    """Return the message that brings the supervisor its `Secrets`. Pure."""
    return {
        "op": "secrets",
        "adoption": spec.line.secret,
        "access_token": spec.access_token,
    }


def supervisor_command(module: str, *numbers: int, warm: bool = False) -> list[str]:
    """Return the command that runs `main` of a module in an interpreter of its own.

    Args:
        module: Of this package.
        numbers: What its `main` is told, descriptors mostly.
        warm: Whether agents are to be forks of it; `main` is told, too, which modules
            the interpreter had loaded.
    """
    told = list(map(str, numbers))
    if warm:
        return [sys.executable, "-c", _WARM.replace("MODULE", module), *told]
    code = _COLD.replace("MODULE", module).replace("COUNT", str(len(told) + 1))
    return [sys.executable, "-I", "-S", "-c", code, *told, *import_paths()]


@cache
def package_origins() -> tuple[str, ...]:
    """Return the first files of the packages that a supervisor imports."""
    specs = map(importlib.util.find_spec, _NEEDED)
    return tuple(spec.origin for spec in specs if spec is not None and spec.origin)


def import_paths() -> tuple[str, ...]:
    """Return the folders from which a supervisor imports what it needs."""
    folders = (str(Path(origin).parents[1]) for origin in package_origins())
    return tuple(dict.fromkeys(folders))


def read_tail(path: Path) -> str:
    """Return the last 4 KiB of a file as text; `""` if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
