"""Running the local platform in the foreground, for as long as one likes."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .output import unheard

if TYPE_CHECKING:
    from ppio_agent.sandbox import SandboxPlatform

__all__ = ["up"]

_LOOK_EVERY = 2.0  # seconds between two looks at the folders of the platform
_TLS_PORT = 3443
_INTERRUPTED = 130
_DESCRIPTORS = 16_384
_SHORTEST_KEY = 8
_LOG_SIZE = 10 * 1024 * 1024
_OLD_LOGS = 2
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_UNPROTECTED = (
    "sandboxes are plain processes of yours: they can read your files, use your network"
    " and reach your other programs; run only code that you would run yourself"
)


def _check_key(
    _context: click.Context, _parameter: click.Parameter, key: str | None
) -> str | None:
    if key is not None and len(key) < _SHORTEST_KEY:
        raise click.BadParameter(f"a key has at least {_SHORTEST_KEY} characters")
    return key


@click.command()
@click.option("--host", help="Address to bind.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535),
              help="Port; 0 takes any free one.  [default: 3900]")  # fmt: skip
@click.option("--tls", "tls_port", type=click.IntRange(0, 65535), is_flag=False,
              flag_value=_TLS_PORT, metavar="[PORT]",
              help=f"Listen with TLS, too.  [default port: {_TLS_PORT}]")  # fmt: skip
@click.option(
    "--backend",
    type=click.Choice(["auto", "process", "bubblewrap"]),
    help="How sandboxes run.  [default: auto]",
)
@click.option("--key", callback=_check_key,
              help="API key to accept.  [default: one is generated and kept]")  # fmt: skip
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where all is kept.")
@click.option(
    "--export",
    is_flag=True,
    help="Print the variables for clients, the key among them, also into a file or log.",
)
def up(*, export: bool, **options: Any) -> int:
    """Run the local sandbox platform until Ctrl-C.

    Prints the variables that point clients at it, if that is on a terminal. Ctrl-C ends
    all sandboxes; a second one ends them at once. What it does is logged in
    logs/platform.log of the data directory.
    """
    from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
    from ppio_agent.sandbox.datadir import DataDir

    given = {name: value for name, value in options.items() if value is not None}
    key = given.pop("key", None)
    if key is not None:
        given["keys"] = {key: "default"}
    if "PPIO_PLATFORM_PORT" not in os.environ:
        given.setdefault("port", 3900)
    config = PlatformConfig.from_env(os.environ, **given)
    log = config.data_dir / "logs" / "platform.log"
    key_file = None if config.keys else DataDir(config.data_dir).key_file
    platform = SandboxPlatform(config)
    stopping = _Stopping(platform)
    _allow_descriptors()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.signalled())
    # A terminal that is closed may tell it twice; to nohup it is nothing.
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: stopping.ask())
    with _naming(config.data_dir), _logging_to(log), platform:
        with unheard():
            _announce(platform, key_file, export=export)
        stopping.wait()
        with unheard():
            click.echo("ending all sandboxes ...", err=True)
    return _INTERRUPTED if stopping.at_once else 0


def _allow_descriptors() -> None:
    """Allow this process more descriptors: each open stream takes two of them."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else _DESCRIPTORS
    with suppress(OSError, ValueError):
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (max(soft, min(most, _DESCRIPTORS)), hard)
        )


def _announce(
    platform: SandboxPlatform, key_file: Path | None, *, export: bool
) -> None:
    from ppio_agent.sandbox.config import unknown_settings

    log = logging.getLogger(__name__)
    for name, hint in unknown_settings(os.environ):
        log.warning("the variable %s is no setting of the platform%s", name, hint)
    log.info(
        "the platform is at %s, process %d, backend %s",
        platform.url, os.getpid(), platform.backend_name,
    )  # fmt: skip
    secure = f" and {platform.tls_url}" if platform.tls_url else ""
    click.echo(f"the local sandbox platform is at {platform.url}{secure}")
    click.echo(f"backend: {platform.backend_name}")
    groups = platform.has_control_groups
    click.echo(f"limits: {'kept by control groups' if groups else 'sampled'}")
    if platform.backend_name == "process":
        click.echo(_UNPROTECTED)
    # What goes elsewhere is kept, as by a service's journal, and others may read it.
    if export or (sys.stdout is not None and sys.stdout.isatty()):
        for name, value in platform.env().items():
            click.echo(f"export {name}={shlex.quote(value)}")
    elif key_file is not None:
        click.echo(f"the key for clients is in {key_file}")
    click.echo("Ctrl-C ends it and all its sandboxes", err=True)


class _Stopping:
    """What signals ask for: to end, and by a second one to end at once."""

    def __init__(self, platform: SandboxPlatform) -> None:
        self._platform = platform
        self._asked = False
        self.at_once = False

    def signalled(self) -> None:
        """Handle one more signal."""
        if self.at_once:
            # Supervisors see that the platform is gone and end their sandboxes.
            os._exit(_INTERRUPTED)
        if self._asked:
            self.at_once = True
            # On a thread of its own: this one may be inside of `close`.
            threading.Thread(target=self._platform.abort, daemon=True).start()
        self.ask()

    def ask(self) -> None:
        """End, if it is not asked for yet."""
        self._asked = True

    def wait(self) -> None:
        """Wait for the first one.

        Raises:
            SandboxUnavailableError: As `SandboxPlatform.check`.
        """
        # A signal that is met by another thread wakes no wait of this one, which alone
        # can handle it; but it is written to the socket at once.
        heard, signals = socket.socketpair()
        with heard, signals:
            heard.settimeout(_LOOK_EVERY)
            signals.settimeout(0)
            before = signal.set_wakeup_fd(signals.fileno())
            try:
                while not self._asked:
                    self._platform.check()
                    with suppress(TimeoutError):
                        heard.recv(1)
            finally:
                signal.set_wakeup_fd(before)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Name a folder where the system does not say of what file its error is."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename = str(folder)
        raise


class _LogFile(RotatingFileHandler):
    """A log that what cannot be written is left out of, as on a full disk."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - theirs
        """Go on: what a person has to know is shown, too."""


class _Shown(logging.Formatter):
    """One line for a person; how it came to that is in the file."""

    def format(self, record: logging.LogRecord) -> str:
        """Return what the record says, and why."""
        error = record.exc_info[1] if record.exc_info else None
        return record.getMessage() + (f": {error}" if error else "")


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Log what the package says into a file of bounded size; warnings are shown, too."""
    from ppio_agent.sandbox.datadir import make_private

    make_private(path.parent)
    # Opened with the first record: until the platform has its data directory to
    # itself, the file may be another's.
    file = _LogFile(
        path, maxBytes=_LOG_SIZE, backupCount=_OLD_LOGS, encoding="utf-8", delay=True
    )
    file.setFormatter(logging.Formatter(_LOG_FORMAT))
    shown = logging.StreamHandler()
    shown.setLevel(logging.WARNING)
    shown.setFormatter(_Shown())
    package = logging.getLogger("ppio_agent")
    before = package.level
    package.setLevel(logging.INFO)
    handlers = (file, shown)
    for handler in handlers:
        package.addHandler(handler)
    try:
        yield
    finally:
        package.setLevel(before)
        for handler in handlers:
            package.removeHandler(handler)
            with suppress(OSError):  # what was not written before
                handler.close()
