"""Telling what this machine lacks for the local platform, and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
from attrs import frozen

from .output import json_option, print_json

if TYPE_CHECKING:
    from ppio_agent.sandbox import PlatformConfig

__all__ = ["Check", "doctor", "examine"]

_PORT = 3900
_LEAST_FREE = 1 << 30
_OLDEST = (3, 10)


@frozen(kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        what: What it is, and how it was found.
        ok: Whether that is as it should be.
        how: How to mend it; empty if nothing has to be.
        optional: Whether all but one feature works without it.
    """

    what: str
    ok: bool
    how: str = ""
    optional: bool = False


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where all is kept.")
@json_option
def doctor(*, data_dir: Path | None, as_json: bool) -> int:
    """Tell what is missing for the best way to run sandboxes, and how to get it."""
    from ppio_agent.sandbox import PlatformConfig

    given = {} if data_dir is None else {"data_dir": data_dir}
    config = PlatformConfig.from_env(os.environ, **given)
    checks = list(examine(config))
    healthy = all(check.ok or check.optional for check in checks)
    if as_json:
        found = [
            {
                "what": check.what,
                "ok": check.ok,
                "how": "" if check.ok else check.how,
                "optional": check.optional,
            }
            for check in checks
        ]
        print_json({"ok": healthy, "checks": found})
        return int(not healthy)
    for check in checks:
        mark = "ok      " if check.ok else "optional" if check.optional else "MISSING "
        click.echo(f"{mark}  {check.what}")
        if not check.ok:
            click.echo(f"          {check.how}")
    best = "everything is there" if healthy else "something is missing"
    click.echo(f"{best} for the best backend")
    return int(not healthy)


def examine(config: PlatformConfig) -> Iterator[Check]:
    """Yield one check after the other; nothing is changed by them.

    Args:
        config: The platform whose surroundings are looked at.
    """
    from ppio_agent.sandbox.backends import bubblewrap

    yield _python()
    yield _system()
    for what, ok, how in bubblewrap.diagnose():
        yield Check(what=what, ok=ok, how=how)
    yield from _data_dir(config.data_dir)
    yield _port(config)
    yield _tls()


def _python() -> Check:
    return Check(
        what=f"Python {platform.python_version()}",
        ok=sys.version_info >= _OLDEST,
        how="install Python 3.10 or later",
    )


def _system() -> Check:
    return Check(
        what=f"system {platform.system()} {platform.release()}",
        ok=sys.platform != "win32",
        how="local sandboxes need Linux or macOS: set PPIO_API_URL to use others",
    )


def _data_dir(path: Path) -> Iterator[Check]:
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    known = f"data directory {path}" + ("" if there == path else " (not made yet)")
    fault = _write_fault(there)
    if fault:
        yield Check(
            what=f"{known} cannot be written: {fault}",
            ok=False,
            how=f"make {there} a folder of yours, or set PPIO_DATA_DIR to another"
            " place",
        )
        return
    yield Check(what=f"{known} can be written", ok=True)
    if there == path:
        open_to = stat.S_IMODE(path.stat().st_mode) & 0o077
        yield Check(
            what=f"{known} is private",
            ok=not open_to,
            how=f"chmod 700 {path}: it holds keys",
        )
    free = shutil.disk_usage(there).free
    yield Check(
        what=f"{free // (1 << 20)} MiB free on its disk",
        ok=free >= _LEAST_FREE,
        how="free 1 GiB, or set PPIO_DATA_DIR to a place on another disk",
    )


def _write_fault(folder: Path) -> str:
    """Return why no file can be made in a folder; empty: one can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return (error.strerror or "it fails").lower()


def _port(config: PlatformConfig) -> Check:
    from ppio_agent.sandbox.datadir import read_running

    port = config.port or _PORT
    running = read_running(config.data_dir)
    if running is not None and _answers(running.url):
        return Check(
            what=f"a platform runs at {running.url} (process {running.pid})", ok=True
        )
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, port))
        except OSError as error:
            return Check(
                what=f"port {port} of {config.host} cannot be used: {error.strerror}",
                ok=False,
                how="end the program that listens there, or: ppio-agent up --port 0",
            )
    return Check(what=f"port {port} of {config.host} is free", ok=True)


def _answers(url: str) -> bool:
    """Whether anybody listens there: a platform that was killed leaves its record."""
    from urllib.parse import urlsplit

    where = urlsplit(url)
    try:
        address = (where.hostname or "", where.port or 0)
        with socket.create_connection(address, timeout=1.0):
            return True
    except OSError:
        return False


def _tls() -> Check:
    return Check(
        what="the package cryptography, for up --tls",
        ok=importlib.util.find_spec("cryptography") is not None,
        how="pip install ppio-agent[tls]",
        optional=True,
    )
