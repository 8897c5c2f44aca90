"""The platform's data directory: what is where, whose it is, and who runs on it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from attrs import field, frozen

from ppio_agent._util.clock import Deadline
from ppio_agent._util.files import UNFINISHED, replace_file
from ppio_agent._util.fork import renew_in_child
from ppio_agent._util.ids import secret_token
from ppio_agent.exceptions import (
    ConfigurationError,
    PlatformAlreadyRunningError,
    SandboxUnavailableError,
)

__all__ = ["DataDir", "Running", "make_private", "read_running"]

_RECORD: Final = "platform.json"
_LOCK: Final = "lock"
_KEY: Final = "key"
_KEY_PREFIX: Final = "sk_local_"
_SOCKETS: Final = "sockets"
_SOCKETS_PREFIX: Final = "ppio-"
_OWNER: Final = "data"
_LONGEST_BASE: Final = 60
_ORPHANED_FOR: Final = 3600.0
# Longer than most commands need it, and a platform to start.
_WAIT: Final = 10.0


@frozen(kw_only=True)
class Running:
    """The platform that runs on a data directory.

    Attributes:
        url: Where it listens.
        pid: Its process.
        api_key: A key it accepts.
    """

    url: str
    pid: int
    api_key: str = field(repr=False)


class DataDir:
    """One data directory, made with mode 0700, locked while it is used.

    Thread safety: one thread at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock_fd: int | None = None
        # Kept apart from its note, which goes with the directory if that is removed.
        self._sockets: Path | None = None
        self._sockets_fd: int | None = None

    @property
    def database(self) -> Path:
        """Where records are kept."""
        return self.path / "platform.db"

    @property
    def blobs(self) -> Path:
        """Where files of templates are kept."""
        return self.path / "blobs"

    @property
    def environments(self) -> Path:
        """Where requirements of templates are installed."""
        return self.path / "environments"

    @property
    def tls(self) -> Path:
        """Where the certificate authority is kept."""
        return self.path / "tls"

    @property
    def sandboxes(self) -> Path:
        """Where live sandboxes have their folders."""
        return self.path / "sandboxes"

    @property
    def blank(self) -> Path:
        """Where sandboxes are that are kept ready for whom they will be."""
        return self.path / "blank"

    @property
    def logs(self) -> Path:
        """Where logs of ended sandboxes are kept."""
        return self.path / "logs"

    @property
    def uploads(self) -> Path:
        """Where archives are while they are read."""
        return self.path / "uploads"

    @property
    def key_file(self) -> Path:
        """Where the generated key is kept."""
        return self.path / _KEY

    def acquire(self) -> None:
        """Make the directory and lock it.

        Raises:
            PlatformAlreadyRunningError: A platform holds it, or a command for long.
            ConfigurationError: There can be none at that place.

        Blocking: 10 s at most, unless a platform runs that announced itself.
        """
        # A forked child would keep it locked for as long as it lives.
        renew_in_child(self, DataDir.release)
        try:
            self._lock()
            self._tidy()
        except BaseException:
            self.release()
            raise

    def _lock(self) -> None:
        deadline = Deadline.after(_WAIT)
        tick = threading.Event()
        while not self._lock_now():
            # Nothing is announced by a command, nor yet by one that is just starting.
            # One that has gone was killed, and a child that it was starting holds the
            # lock for a moment.
            if deadline.expired or read_running(self.path) is not None:
                raise _already_running(self.path, _announced(self.path))
            tick.wait(0.02)

    def _lock_now(self) -> bool:
        """Lock the file that is there now; the one that was may have been removed."""
        self.release()
        make_private(self.path)
        self._lock_fd = os.open(
            self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        return _locked(self._lock_fd, fcntl.LOCK_EX) and self.is_held

    def _tidy(self) -> None:
        """Remove what a platform that was killed has left."""
        self.withdraw()
        for folder in (self.path, self.tls):
            for unfinished in folder.glob(f"*{UNFINISHED}"):
                unfinished.unlink()
        self.uploads.mkdir(exist_ok=True, mode=0o700)

    @property
    def is_held(self) -> bool:
        """Whether the directory is the one that was locked, not removed or replaced."""
        return _is_at(self.path / _LOCK, self._lock_fd)

    def check(self) -> None:
        """See to it that the directory and the folder for sockets are still there.

        Raises:
            SandboxUnavailableError: One was removed or replaced.
        """
        if not self.is_held:
            raise SandboxUnavailableError(
                "the data directory was removed or replaced, so the platform keeps"
                " nothing any more and ends: start it again"
            )
        if self._sockets is not None and not _is_at(self._sockets, self._sockets_fd):
            raise SandboxUnavailableError(
                f"the folder for sockets {self._sockets} was removed or replaced, so"
                " nobody reaches the platform any more and it ends: start it again"
            )

    def key(self) -> str:
        """Return the generated key, the same at each start."""
        file = self.key_file
        key = file.read_text().strip() if file.exists() else ""
        if not key:
            key = f"{_KEY_PREFIX}{secret_token()}"
            _write_private(file, key)
        return key

    def make_socket_folder(self) -> Path:
        """Return a private folder for sockets; their paths are limited to 108 bytes.

        It is that of a platform that was killed, whose sandboxes are reached there.

        Raises:
            SandboxUnavailableError: There is no place with a path short enough.
        """
        folder = self._noted_sockets()
        if folder is None or not self._lock_sockets(folder):
            folder = self._new_sockets()
            self._lock_sockets(folder)
        (folder / _OWNER).unlink(missing_ok=True)
        (folder / _OWNER).symlink_to(self.path)
        self._sockets = folder
        return folder

    def _lock_sockets(self, folder: Path) -> bool:
        """Lock the folder, unless another platform has it, as of a copied directory.

        Cleaners of temporary files leave a folder alone that is locked.
        """
        if self._sockets_fd is not None:
            os.close(self._sockets_fd)
        self._sockets_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return _locked(self._sockets_fd, fcntl.LOCK_EX)

    def _new_sockets(self) -> Path:
        for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir()):
            if base and len(base) <= _LONGEST_BASE and os.access(base, os.W_OK):
                _remove_orphans(Path(base))
                folder = Path(base, f"{_SOCKETS_PREFIX}{secrets.token_hex(5)}")
                # Noted first: whenever this is killed, the next one has the folder.
                _write_private(self.path / _SOCKETS, str(folder))
                folder.mkdir(mode=0o700)
                return folder
        raise SandboxUnavailableError(
            "there is no folder with a short path for sockets: set TMPDIR to one"
        )

    def _noted_sockets(self) -> Path | None:
        try:
            folder = Path((self.path / _SOCKETS).read_text())
            about = folder.lstat()
        except OSError:
            return None
        # In a place for all, somebody else may have made it again since.
        private = stat.S_ISDIR(about.st_mode) and not about.st_mode & 0o077
        named = folder.name.startswith(_SOCKETS_PREFIX)
        return folder if private and named and about.st_uid == os.getuid() else None

    @property
    def has_sockets(self) -> bool:
        """Whether there are sockets, as those that a platform that was killed left."""
        folder = self._sockets
        return folder is not None and any(p.name != _OWNER for p in folder.iterdir())

    def remove_socket_folder(self) -> None:
        """Remove the folder for sockets. Idempotent."""
        folder, self._sockets = self._sockets, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        if self.is_held:  # or it may be another platform's
            (self.path / _SOCKETS).unlink(missing_ok=True)

    def announce(self, running: Running) -> None:
        """Let other processes of this user find the platform."""
        record = {"url": running.url, "pid": running.pid, "api_key": running.api_key}
        _write_private(self.path / _RECORD, json.dumps(record))

    def withdraw(self) -> None:
        """Take the announcement back. Idempotent."""
        if self.is_held:
            (self.path / _RECORD).unlink(missing_ok=True)

    def release(self) -> None:
        """Let others use the directory. Idempotent."""
        for fd in (self._lock_fd, self._sockets_fd):
            if fd is not None:
                os.close(fd)
        self._lock_fd = self._sockets_fd = None


def _remove_orphans(base: Path) -> None:
    """Remove folders for sockets of platforms whose data directories have gone.

    They were killed, and none comes after them, as where a test was. One that runs may
    see its directory where this one does not, as in another container.
    """
    oldest = time.time() - _ORPHANED_FOR
    for folder in base.glob(f"{_SOCKETS_PREFIX}*"):
        with suppress(OSError):  # not of this kind
            about = folder.lstat()
            gone = not (folder / _OWNER).readlink().exists()
            old = about.st_uid == os.getuid() and about.st_mtime < oldest
            if gone and old and not _in_use(folder):
                shutil.rmtree(folder, ignore_errors=True)


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for this user only.

    Raises:
        ConfigurationError: There can be none at that place.
    """
    try:
        if not folder.parent.exists():
            # Not `parents=True`: those it makes can be read by all.
            make_private(folder.parent)
        folder.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ConfigurationError(
            f"the data directory cannot be made at {folder}:"
            f" {(error.strerror or 'it fails').lower()}; take another by --data-dir or"
            " PPIO_DATA_DIR"
        ) from error


def read_running(path: Path) -> Running | None:
    """Return what the platform on the data directory `path` announces, or None.

    One that was killed has announced itself, too. But its lock is free, or its process
    gone; either alone may mislead: a child that it was starting may hold the lock, and
    another program have its pid.
    """
    running = _announced(path)
    if running is None or not _lives(running.pid) or not _in_use(path / _LOCK):
        return None
    return running


def _announced(path: Path) -> Running | None:
    try:
        found = json.loads((path / _RECORD).read_text())
        return Running(
            url=found["url"], pid=int(found["pid"]), api_key=found["api_key"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _in_use(path: Path) -> bool:
    """Whether a file or folder is locked."""
    try:
        lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        used = not _locked(lock, fcntl.LOCK_SH)
        # Closing would not do where a child was forked meanwhile.
        fcntl.flock(lock, fcntl.LOCK_UN)
    finally:
        os.close(lock)
    return used


def _locked(lock: int, kind: int) -> bool:
    """Lock a file unless another process has; freed however this process ends."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_at(path: Path, fd: int | None) -> bool:
    """Whether what is at `path` is what is open, not removed or replaced."""
    if fd is None:
        return False
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # it may well be there
    return os.path.samestat(found, os.fstat(fd))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return True


def _already_running(
    path: Path, running: Running | None
) -> PlatformAlreadyRunningError:
    if running is None:
        return PlatformAlreadyRunningError(
            f"a command, or a platform that starts, uses the data directory {path}:"
            " try again when it is done, or use another data_dir"
        )
    if not _lives(running.pid):
        return PlatformAlreadyRunningError(
            f"the platform of the data directory {path}, process {running.pid}, has"
            " ended, but a process that it has started holds the directory's lock: end"
            " that, or use another data_dir"
        )
    return PlatformAlreadyRunningError(
        f"a platform at {running.url} (process {running.pid}) uses the data directory"
        f" {path}: use that one, or another data_dir",
        url=running.url,
        pid=running.pid,
    )


def _write_private(path: Path, text: str) -> None:
    """Write a file that only this user can read; it is whole whenever it is there."""
    replace_file(path, text.encode(), mode=0o600)
