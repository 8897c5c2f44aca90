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
_LEAST_INODES = 10_000
# What a sandbox may have open, and about what twenty of them run.
_LEAST_OPEN = 4096
_LEAST_PROCESSES = 1024
# Where locks and memory shared between processes cannot be relied on, as SQLite needs.
_REMOTE = frozenset({
    "9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "glusterfs",
    "lustre", "nfs", "nfs4", "smb3", "smbfs",
})  # fmt: skip
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
    """Tell what the local platform lacks here, and how to get it.

    Status 0 says that nothing is missing for the best way to run sandboxes.
    """
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
    yield _control_groups()
    yield from _limits()
    yield from _data_dir(config.data_dir)
    yield from _ports(config)
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


def _limits() -> Iterator[Check]:
    if sys.platform == "win32":
        return
    import resource  # not on Windows

    # `up` takes as many as it may have.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    unlimited = most == resource.RLIM_INFINITY
    yield Check(
        what=f"{'any number of' if unlimited else most} open files for a process",
        ok=unlimited or most >= _LEAST_OPEN,
        how=f"allow {_LEAST_OPEN}: each stream takes two; ulimit -Hn, hard nofile in"
        " /etc/security/limits.conf, or LimitNOFILE= of the service",
    )
    if os.geteuid() == 0:
        return  # whom it does not bind
    most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    unlimited = most == resource.RLIM_INFINITY
    yield Check(
        what=f"{'any number of' if unlimited else most} processes for this user",
        ok=unlimited or most >= _LEAST_PROCESSES,
        how=f"allow {_LEAST_PROCESSES}: a sandbox may have 256; ulimit -u, nproc in"
        " /etc/security/limits.conf, or LimitNPROC= of the service",
    )


def _control_groups() -> Check:
    from ppio_agent.sandbox.backends import delegation

    place = delegation.look()
    if isinstance(place, delegation.Place):
        return Check(what=f"control groups for limits, in {place.path}", ok=True)
    return Check(
        what=f"control groups, without which limits are sampled: {place}",
        ok=False,
        how="systemd-run --user --scope -p Delegate=yes ppio-agent up",
        optional=True,
    )


def _data_dir(path: Path) -> Iterator[Check]:
    there = next(folder for folder in (path, *path.parents) if _is_seen(folder))
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
    yield from _disk(there)


def _is_seen(path: Path) -> bool:
    try:
        path.stat()
    except OSError:  # nor may it be looked for
        return False
    return True


def _disk(folder: Path) -> Iterator[Check]:
    free = shutil.disk_usage(folder).free
    yield Check(
        what=f"{free // (1 << 20)} MiB free on its disk",
        ok=free >= _LEAST_FREE,
        how="free 1 GiB, or set PPIO_DATA_DIR to a place on another disk",
    )
    about = os.statvfs(folder)
    if about.f_files:  # some file systems make them as they are wanted
        yield Check(
            what=f"{about.f_favail} more files on its disk",
            ok=about.f_favail >= _LEAST_INODES,
            how="remove files there: it has no more inodes, however much is free",
        )
    kind = _file_system(folder)
    if kind in _REMOTE:
        yield Check(
            what=f"its disk is of another machine ({kind})",
            ok=False,
            how="set PPIO_DATA_DIR to a place on a disk of this machine: SQLite and"
            " locks fail there",
        )


def _file_system(folder: Path) -> str:
    """Return the type of the file system that a folder is on; empty: not known."""
    import psutil

    real = folder.resolve()
    mounts = {
        Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)
    }
    return next((mounts[p] for p in (real, *real.parents) if p in mounts), "")


def _write_fault(folder: Path) -> str:
    """Return why no file can be made in a folder; empty: one can."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return (error.strerror or "it fails").lower()


def _ports(config: PlatformConfig) -> Iterator[Check]:
    from ppio_agent.sandbox.datadir import read_running

    running = read_running(config.data_dir)
    if running is not None and _answers(running.url):
        yield Check(
            what=f"a platform runs at {running.url} (process {running.pid})", ok=True
        )
        return
    yield _port(config.host, config.port or _PORT, "--port 0")
    if config.tls_port:
        yield _port(config.host, config.tls_port, "--tls 0")


def _port(host: str, port: int, other: str) -> Check:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Check(
                what=f"port {port} of {host} cannot be used: {error.strerror}",
                ok=False,
                how=f"end the program that listens there, or: ppio-agent up {other}",
            )
    return Check(what=f"port {port} of {host} is free", ok=True)


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
