"""Virtual environments for agents: one for each set of requirements, made once.

An environment has its final name only when it is whole, so a crash leaves none that is
half made. It sees the packages of the platform's own interpreter behind its own, so
that agents need not ask for the framework that they are run by.
"""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import site
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from shutil import rmtree
from typing import Final

from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import ServiceUnavailableError

from .manifest import manifest_error
from .requirements import REQUIREMENTS, pip_environment, unsafe_lines

__all__ = ["Environments"]

_log = logging.getLogger(__name__)

_TIMEOUT: Final = 600.0
_TAIL: Final = 4096
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_NEW, _OLD = "new-", "old-"
_PIP: Final = ("-m", "pip", "--disable-pip-version-check", "--no-input")
# The first version of pip that installs into another interpreter.
_PIP_REACHES_OUT: Final = (22, 3)


class Environments:
    """Virtual environments under `root/<key>`.

    Args:
        root: Where they are.
        wheels_only: Whether nothing that is installed may run code meanwhile, as must
            be where agents may not do what the platform's user may.
        timeout: Most seconds that making one may take.

    Thread safety: thread-safe.
    """

    def __init__(
        self, root: Path, *, wheels_only: bool = False, timeout: float = _TIMEOUT
    ) -> None:
        self._root = root
        self._wheels_only = wheels_only
        self._timeout = timeout
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Held while one is made: they are few, and pip uses the whole machine.
        self._making = threading.Lock()
        # Guards _held and every change of which environments there are.
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, requirements: bytes) -> Iterator[str]:
        """Make the environment for a `requirements.txt` unless there is one.

        Yields:
            Its key. It is not removed before the block ends.

        Raises:
            TemplateManifestError: They cannot be installed; with the output of pip.
            ServiceUnavailableError: Others are being made for too long.

        Blocking: as long as pip takes, within limits.
        """
        key = _key(requirements)
        with self._lock:
            self._held[key] += 1
        try:
            if not self.python(key).exists():
                self._make_in_turn(key, requirements)
            yield key
        finally:
            with self._lock:
                self._held[key] -= 1
                self._held += Counter()  # forgets those that nobody holds

    def python(self, key: str) -> Path:
        """Return the interpreter of an environment, be it there or not."""
        return self._root / key / "bin" / "python"

    def keys(self) -> set[str]:
        """Return the keys of all there are."""
        return {f.name for f in self._root.iterdir() if _KEY.fullmatch(f.name)}

    def retire(self, keys: Set[str]) -> None:
        """Give up environments, but for those that are held."""
        with self._lock:
            for key in keys:
                if not self._held[key]:
                    (self._root / key).rename(self._root / f"{_OLD}{new_id()}")

    def clear_away(self, *, unfinished: bool = False) -> None:
        """Remove what was given up.

        Args:
            unfinished: Remove what a crash left half made, too; only while none is
                being made.
        """
        for folder in self._root.iterdir():
            if folder.name.startswith((_OLD, _NEW) if unfinished else _OLD):
                # Its pip may have outlived the platform: then the next time.
                rmtree(folder, ignore_errors=True)

    def _make_in_turn(self, key: str, requirements: bytes) -> None:
        if not self._making.acquire(timeout=self._timeout):
            raise ServiceUnavailableError(
                "other environments are being made: deploy again later",
                retry_after=60.0,
            )
        try:
            if not self.python(key).exists():  # nobody has made it meanwhile
                self._make(key, requirements)
        finally:
            self._making.release()

    def _make(self, key: str, requirements: bytes) -> None:
        if self._wheels_only:
            problems = unsafe_lines(requirements.decode("utf-8", "replace"))
            if problems:
                raise manifest_error(problems)
        folder = self._root / f"{_NEW}{new_id()}"
        target = self._root / key
        try:
            self._install(folder, requirements)
            _see_platform(folder)
            _move_scripts(folder, target)
            with self._lock:
                if target.exists():  # its interpreter has gone
                    target.rename(self._root / f"{_OLD}{new_id()}")
                folder.rename(target)
        finally:
            rmtree(folder, ignore_errors=True)
        _log.info("environment %s was made", key)

    def _install(self, folder: Path, requirements: bytes) -> None:
        python = str(folder / "bin" / "python")
        reaches_out = _reaches_out()
        without = ("--without-pip",) if reaches_out else ()
        self._run(folder, [sys.executable, "-m", "venv", *without, str(folder)])
        wanted = folder / REQUIREMENTS
        wanted.write_bytes(requirements)
        pip = (
            [sys.executable, *_PIP, "--python", python]
            if reaches_out
            else [python, *_PIP]
        )
        wheels = ("--only-binary", ":all:") if self._wheels_only else ()
        command = [*pip, "install", *wheels, "--requirement", str(wanted)]
        self._run(folder, command)

    def _run(self, folder: Path, command: list[str]) -> None:
        folder.mkdir(exist_ok=True, mode=0o700)
        log = folder / "install.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=pip_environment(os.environ),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(self._timeout)
                fault = f"pip ended with {code}" if code else None
            except subprocess.TimeoutExpired:
                fault = f"it took longer than {self._timeout:g} s"
            finally:
                if process.returncode is None:
                    _end(process)
        if fault is not None:
            shown = log.read_bytes()[-_TAIL:].decode("utf-8", "replace").strip()
            message = f"cannot be installed: {fault}; {shown or 'it said nothing'}"
            raise manifest_error([(REQUIREMENTS, 0, message)])


def _key(requirements: bytes) -> str:
    """Return what an environment is known by: what it holds and what it is for."""
    interpreter = [sys.version, sys.base_prefix, *site.getsitepackages()]
    return sha256(json.dumps(interpreter).encode() + requirements).hexdigest()


def _reaches_out() -> bool:
    try:
        found = re.findall(r"[0-9]+", metadata.version("pip"))
    except metadata.PackageNotFoundError:
        return False
    return tuple(map(int, found[:2])) >= _PIP_REACHES_OUT


def _see_platform(folder: Path) -> None:
    """Let an environment find the packages of this interpreter, after its own."""
    lines = [
        f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()
    ]
    (packages,) = (folder / "lib").glob("python*/site-packages")
    (packages / "zz-platform.pth").write_text("".join(f"{line}\n" for line in lines))


def _move_scripts(folder: Path, target: Path) -> None:
    """Have the scripts of an environment name the place that it gets."""
    for script in (folder / "bin").iterdir():
        text = b"" if script.is_symlink() else script.read_bytes()
        moved = text.replace(os.fsencode(folder), os.fsencode(target))
        if moved != text:
            script.write_bytes(moved)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and its children."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
