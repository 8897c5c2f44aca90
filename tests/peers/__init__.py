"""Published packages that ours are tested and measured beside.

Each has an environment of its own below `.venv/peers`, with exactly what `<name>.txt`
in this folder lists. `python -m tests.peers` makes those that the tests drive; the
benchmarks make theirs at first use.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

__all__ = ["TESTED", "Unavailable", "interpreter", "make_all", "needs_peer"]

TESTED: Final = ("ppio-1", "ppio-2", "e2b")
"""Those that the tests drive."""

_LISTS: Final = Path(__file__).parent
_ENVIRONMENTS: Final = Path(__file__).parents[2] / ".venv" / "peers"
# Why an environment could not be made; trying again would take as long each time.
_FAILED: Final[dict[str, str]] = {}


class Unavailable(Exception):
    """An environment cannot be made; the text says why."""


def interpreter(name: str) -> Path:
    """Return the interpreter of an environment, after making that if need be.

    Raises:
        Unavailable: It cannot be made.
    """
    folder = _ENVIRONMENTS / name
    if not _is_ready(name):
        if name not in _FAILED:
            print(f"making {folder} …", flush=True)
            _FAILED[name] = _make(folder, _LISTS / f"{name}.txt")
        if _FAILED[name]:
            raise Unavailable(_FAILED[name])
        (folder / ".ready").write_text(_wanted(name))
    return folder / "bin" / "python"


def needs_peer(name: str) -> Path:
    """Return its interpreter; without one skip the test, but in CI fail it."""
    if not _is_ready(name):
        reason = f"{name} is not installed; .ci/peers installs it"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return _ENVIRONMENTS / name / "bin" / "python"


def make_all() -> None:
    """Make what tests drive, and say in one line what there is."""
    with ThreadPoolExecutor() as pool:
        said = ", ".join(pool.map(_make_one, TESTED))
    print(f"published packages to test with: {said}")


def _make_one(name: str) -> str:
    try:
        interpreter(name)
    except Unavailable as error:
        return f"without {name} (its tests skip: {error})"
    return name


def _wanted(name: str) -> str:
    # Extension modules are of one version of Python.
    return f"{platform.python_version()}\n{(_LISTS / f'{name}.txt').read_text()}"


def _is_ready(name: str) -> bool:
    ready = _ENVIRONMENTS / name / ".ready"
    return ready.exists() and ready.read_text() == _wanted(name)


def _make(folder: Path, listed: Path) -> str:
    """Make an environment; returns why it cannot be made, or nothing."""
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    quick = ("--quiet", "--disable-pip-version-check", "--retries=1", "--timeout=10")
    for command in (
        (sys.executable, "-m", "venv", "--clear", "--without-pip", folder),
        (*pip, "install", *quick, "--requirement", listed),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            return lines[-1][:200]
    return ""
