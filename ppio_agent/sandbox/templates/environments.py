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
from contextlib import contextmanager, suppress
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from shutil import rmtree
from typing import Final

import ppio_agent
from ppio_agent._util.ids import new_id
from ppio_agent.exceptions import ServerDrainingError, ServiceUnavailableError
from ppio_agent.sandbox.keys import DEFAULT_TENANT
from ppio_agent.sandbox.seats import Seats

from .installer import ENDED_EARLY
from .manifest import manifest_error
from .requirements import REQUIREMENTS, pip_environment, unsafe_lines

__all__ = ["Environments"]

_log = logging.getLogger(__name__)

_TIMEOUT: Final = 600.0
_SPARE: Final = 10.0
_MOST: Final = 5
_AGAIN: Final = 60.0
_TAIL: Final = 16_384
_LINES: Final = 10
_KEY: Final = re.compile(r"[0-9a-f]{64}")
_NEW, _OLD = "new-", "old-"
_PIP: Final = ("-m", "pip", "--disable-pip-version-check", "--no-input")
_BOOTSTRAP: Final = (
    "import sys; sys.path.append(sys.argv[1]);"
    " from ppio_agent.sandbox.templates.installer import main;"
    " main(int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])"
)
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
        self._seats = Seats("installations", most=_MOST, most_of_one=1, hint=_AGAIN)
        # Guards all below, and every change of which environments there are.
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()
        # One is made at a time: they are few, and pip uses the whole machine.
        self._turn = threading.Condition(self._lock)
        self._making = False
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    @contextmanager
    def hold(
        self, requirements: bytes, *, tenant: str = DEFAULT_TENANT
    ) -> Iterator[str]:
        """Make the environment for a `requirements.txt` unless there is one.

        Args:
            requirements: The text.
            tenant: For whom; each may have one made at a time.

        Yields:
            Its key. It is not removed before the block ends.

        Raises:
            TemplateManifestError: They cannot be installed; with the output of pip.
            RateLimitError: Another is being made for the tenant.
            ServiceUnavailableError: Others are being made, or this is closed.

        Blocking: as long as pip takes, within limits.
        """
        key = _key(requirements)
        with self.keep(key) as python:
            if not python.exists():
                with self._seats.taken(tenant), self._in_turn():
                    if not python.exists():  # nobody has made it meanwhile
                        self._make(key, requirements)
            yield key

    @contextmanager
    def keep(self, key: str) -> Iterator[Path]:
        """Keep an environment, be it there or not, from being removed.

        Args:
            key: Its key.

        Yields:
            Its interpreter. It is not removed before the block ends.
        """
        with self._lock:
            self._held[key] += 1
        try:
            yield self.python(key)
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
                # What fills it may not have ended yet: then the next time.
                rmtree(folder, ignore_errors=True)

    def close(self, timeout: float) -> None:
        """Give up what is being made, and make no more. Idempotent.

        Args:
            timeout: Most seconds to wait for the end of pip.
        """
        with self._turn:
            self._closed = True
            self._turn.notify_all()
            if self._process is not None:
                _give_up(self._process)
            self._turn.wait_for(lambda: not self._making, timeout)

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        with self._turn:
            free = self._turn.wait_for(
                lambda: self._closed or not self._making, self._timeout
            )
            self._check_open_locked()
            if not free:
                raise ServiceUnavailableError(
                    "other environments are being made: deploy again later",
                    retry_after=_AGAIN,
                )
            self._making = True
        try:
            yield
        finally:
            with self._turn:
                self._making = False
                self._turn.notify_all()

    def _check_open_locked(self) -> None:
        if self._closed:
            raise ServerDrainingError(
                "the platform is stopping: deploy again later", retry_after=1.0
            )

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
                [*_installer(self._timeout), *command],
                cwd=folder,
                env=pip_environment(os.environ),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,
            )
        code = self._ended(process)
        if not code:
            return
        with self._lock:
            self._check_open_locked()
        fault = f"pip ended with {code}"
        if code == ENDED_EARLY:
            fault = f"it took longer than {self._timeout:g} s"
        shown = _why(log.read_bytes()[-_TAIL:].decode("utf-8", "replace"))
        message = f"cannot be installed: {fault}; {shown or 'it said nothing'}"
        raise manifest_error([(REQUIREMENTS, 0, message)])

    def _ended(self, process: subprocess.Popen[bytes]) -> int:
        """Return the exit status of a run, which `close` may give up."""
        try:
            with self._lock:
                self._process = process
                if self._closed:
                    _give_up(process)
            # It keeps the time itself; but what it runs may have stopped it.
            return process.wait(self._timeout + _SPARE)
        except subprocess.TimeoutExpired:
            return ENDED_EARLY
        finally:
            with self._lock:
                self._process = None
            _end(process)


def _why(output: str) -> str:
    """Return why a run failed by what it printed: its errors, then its last lines."""
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lstrip().startswith("ERROR:")]
    return "\n".join([*errors, *(x for x in lines[-_LINES:] if x not in errors)])


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


def _installer(timeout: float) -> list[str]:
    home = str(Path(ppio_agent.__file__).parents[1])
    facts = [home, str(os.getpid()), str(timeout)]
    return [sys.executable, "-I", "-S", "-c", _BOOTSTRAP, *facts]


def _give_up(process: subprocess.Popen[bytes]) -> None:
    """Have a run end; no wait."""
    assert process.stdin is not None  # noqa: S101 - a pipe
    with suppress(OSError):  # it has ended
        process.stdin.write(b".")


def _end(process: subprocess.Popen[bytes]) -> None:
    """See to it that a run has ended, and all that it has started."""
    if process.poll() is None:
        _give_up(process)
        try:
            process.wait(_SPARE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert process.stdin is not None  # noqa: S101 - a pipe
    process.stdin.close()
