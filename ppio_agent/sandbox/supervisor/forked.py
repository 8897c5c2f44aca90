"""Agents as forks of a supervisor that has imported for them what they need.

An interpreter and its imports take some hundred milliseconds; a fork takes a few. For
the agent's program the two must look alike, so what cannot be had in a fork is not
tried: whatever counts only while an interpreter starts makes an agent start by `exec`.

What differs: more modules are loaded than the program has asked for, with their
loggers; the seed of `hash()` and the layout of memory are those of the process that was
forked; and so is what `/proc/self` shows of how it was started.
"""

from __future__ import annotations

import builtins
import gc
import importlib
import io
import os
import pkgutil
import signal
import site
import sys
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from importlib.machinery import SourceFileLoader
from typing import Any, NamedTuple

from .spawn import (
    READY_FD,
    Command,
    Forked,
    Start,
    become_dumpable,
    name_process,
    or_end,
)

__all__ = ["BASE_ENVIRONMENT", "Warm", "preload", "run"]

BASE_ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
"""With what a process that preloads must have been started, among others."""

# Read while an interpreter or the C library starts, and never again.
_START_PREFIXES = ("PYTHON", "LC_", "LD_", "MALLOC_", "GLIBC_", "OPENSSL_")
_START_NAMES = ("LANG", "LANGUAGE")

# What an agent of this package, and one on Flask, loads until its first answer. Names
# only: a sandbox imports nothing of the layer that it is in.
_AGENTS = (
    "attrs",
    "encodings.idna",
    "flask",
    "http.server",
    "importlib.metadata",
    "ppio_agent.serving",
    "ppio_agent.serving.app",
    "ppio_agent.serving.server",
    "ppio_agent.serving.plugin",
    "ppio_agent.web.logs",
    "ppio_agent.web.run",
    "ssl",
    "waitress",
)
_SUPERVISOR = "ppio_agent.sandbox.supervisor"


class Warm(NamedTuple):
    """What an interpreter has loaded ahead.

    Attributes:
        names: First parts of the names of modules that a fresh one has not loaded.
        stamps: Files of installed packages among them, and when they were changed.
    """

    names: frozenset[str]
    stamps: tuple[tuple[str, int], ...] = ()

    def suits(self, command: Command) -> bool:
        """Return whether a fork of this process can be what `exec` would make of it."""
        python, *arguments = command.argv
        if python != sys.executable or len(arguments) != 1:
            return False
        script = os.path.realpath(os.path.join(command.cwd, arguments[0]))
        if not os.path.isfile(script) or not _starts_alike(command.env):
            return False
        # Packages that were installed for the user of the sandbox.
        if os.path.isdir(os.path.join(command.env.get("HOME", ""), ".local", "lib")):
            return False
        # A package that was upgraded since.
        if any(_changed_at(path) != stamp for path, stamp in self.stamps):
            return False
        return not self._shadowed(os.path.dirname(script))

    def _shadowed(self, folder: str) -> bool:
        """Return whether files of the program stand for modules that are loaded."""
        foreign = self.names - sys.stdlib_module_names
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if _stem(entry.name) in self.names:
                        return True
                    # Programs put folders like `vendor` on their path. The modules of
                    # their own packages may well have names of the standard library.
                    if entry.is_dir() and not foreign.isdisjoint(
                        map(_stem, os.listdir(entry))
                    ):
                        return True
        except OSError:
            return True
        return False


def _stem(name: str) -> str:
    """Return as what a file or folder can be imported; "" if it cannot."""
    stem, dot, _ = name.partition(".")
    return stem if not dot or name.endswith((".py", ".pyc", ".so")) else ""


def _starts_alike(env: Mapping[str, str]) -> bool:
    """Return whether an interpreter would start in `env` as this one has started."""
    relevant = {
        name: value
        for name, value in env.items()
        if name in _START_NAMES or name.startswith(_START_PREFIXES)
    }
    return relevant == BASE_ENVIRONMENT


def preload(fresh: Iterable[str]) -> Warm:
    """Import what supervisors and agents need, and keep it out of sight of `gc`.

    Args:
        fresh: The modules that this interpreter had loaded when it had started.

    Raises:
        ImportError: This package cannot be imported by a program of its own.
        RuntimeError: An import has started a thread, which no fork would have.
    """
    gc.disable()
    package = importlib.import_module(_SUPERVISOR)
    for info in pkgutil.iter_modules(package.__path__, f"{_SUPERVISOR}."):
        importlib.import_module(info.name)
    before = set(sys.modules)
    for name in _AGENTS:
        importlib.import_module(name)
    sys.modules["importlib.metadata"].entry_points()  # it remembers what is where
    stamps = tuple(_stamps(sys.modules.keys() - before))
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("an imported module has started a thread")
    # Not collected first: that is a tenth of all this work, for little memory.
    gc.freeze()
    gc.enable()
    names = {_first(name) for name in sys.modules} - {_first(name) for name in fresh}
    return Warm(frozenset(names), stamps)


def _stamps(modules: Iterable[str]) -> Iterator[tuple[str, int]]:
    for name in modules:
        path = getattr(sys.modules[name], "__file__", None)
        if path and _first(name) not in sys.stdlib_module_names:
            yield path, _changed_at(path)


def _changed_at(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _first(name: str) -> str:
    return name.partition(".")[0]


def run(supervise: Callable[[], None]) -> None:
    """Run a supervisor, and in what it forks the program that the fork is to be.

    To be called by the outermost frame of the interpreter, which in a fork ends as
    that of any program does. The supervisor itself ends here, at once: there is
    nothing that it could tidy up.
    """
    try:
        supervise()
    except Forked as forked:
        start = forked.start
    except BaseException as exc:  # noqa: BLE001 - the outermost frame of the process
        _report(exc, exc.__traceback__)
        os._exit(1)
    else:
        os._exit(0)
    _become(start)


def _become(start: Start) -> None:
    """Be the program of `start`."""
    # The supervisor's objects go now, while the descriptors that they close are still
    # its own.
    gc.collect()
    source, path = or_end(partial(_settle, start), start.failure)
    os.close(start.failure)
    namespace = _make_main(path)
    try:
        exec(compile(source, path, "exec", dont_inherit=True), namespace)  # noqa: S102
    except SystemExit:
        raise
    except BaseException as exc:  # noqa: BLE001 - it is raised below
        failure = exc
    else:
        return
    # Not above, where it would be the context of what fails in reporting it.
    _report(failure, failure.__traceback__ and failure.__traceback__.tb_next)
    sys.excepthook = lambda *_: None  # it is said; the exit code is Python's
    raise failure


def _settle(start: Start) -> tuple[bytes, str]:
    """Be as an interpreter that has just started.

    Returns:
        The source of the program and its path.
    """
    start.settle()
    kept = {0, 1, 2, start.failure}
    _close_all_but(kept if start.files[3] is None else {*kept, READY_FD})
    become_dumpable()  # as by exec, when nothing of the supervisor is open any more
    for signum in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(signum, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Which up to Python 3.12 is that of the process which imported `threading`.
    vars(threading.main_thread())["_native_id"] = threading.get_native_id()
    name_process("ppio-agent")
    os.environ.clear()
    os.environ.update(start.command.env)
    if "TZ" in start.command.env:
        time.tzset()
    _open_streams()
    script = start.command.argv[1]
    path = os.path.join(os.getcwd(), script)
    sys.argv = [script]
    sys.orig_argv = list(start.command.argv)
    sys.path.insert(0, os.path.dirname(os.path.realpath(path)))
    # Both are below the home folder.
    site.USER_BASE = site.USER_SITE = None
    site.getusersitepackages()
    with open(path, "rb") as file:
        return file.read(), path


def _close_all_but(kept: set[int]) -> None:
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in kept:
            with suppress(OSError):  # what listed them
                os.close(int(name))


def _open_streams() -> None:
    """Open the standard streams as an interpreter does, for descriptors 0 to 2."""
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        earlier = getattr(sys, f"__{name}__")
        buffering = -1 if mode == "r" else 0
        binary: Any = open(fd, f"{mode}b", buffering, closefd=False)  # noqa: SIM115
        getattr(binary, "raw", binary).name = f"<{name}>"
        stream: Any = io.TextIOWrapper(
            binary, earlier.encoding, earlier.errors, newline="\n", write_through=True
        )
        stream.mode = mode
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _make_main(path: str) -> dict[str, Any]:
    """Make the module `__main__` for a script; return its names."""
    main = types.ModuleType("__main__")
    main.__loader__ = SourceFileLoader("__main__", path)
    vars(main).update(
        __annotations__={}, __builtins__=builtins, __file__=path, __cached__=None
    )
    sys.modules["__main__"] = main
    return vars(main)


def _report(exc: BaseException, frames: types.TracebackType | None) -> None:
    """Show what ends a program, as its interpreter does."""
    exc.__traceback__ = frames
    try:
        sys.excepthook(type(exc), exc, frames)
    except SystemExit:
        raise
    except BaseException as failure:  # noqa: BLE001 - as an interpreter does
        failure.__traceback__ = failure.__traceback__ and failure.__traceback__.tb_next
        sys.stderr.write("Error in sys.excepthook:\n")
        sys.__excepthook__(type(failure), failure, failure.__traceback__)
        sys.stderr.write("\nOriginal exception was:\n")
        sys.__excepthook__(type(exc), exc, frames)
