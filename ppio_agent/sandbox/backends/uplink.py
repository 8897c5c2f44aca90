"""The way to the internet of a sandbox that has a network namespace of its own.

A helper, `pasta` or `slirp4netns`, carries packets between an interface inside and
sockets outside. It maps nothing to the loopback of the host. Two shells wait beside it:
they hold one end of a pipe whose other end only the sandbox has, so that the helper
ends with the sandbox, however that, its monitor or the platform ended.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path

from attrs import frozen

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import SandboxStartError

from .startup import read_tail

__all__ = ["Helper", "connect", "find_helpers", "resolver"]

_NAMESERVER = "10.0.2.3"
_NS_GET_USERNS = 0xB701
_LIMIT = 5.0
_LOOK_EVERY = 0.002
_ADMIN_PATH = "/usr/local/sbin:/usr/sbin:/sbin"

# Standard input and output are the two namespaces: a helper may close other descriptors
# that it inherits, and as root it has given up the right to look into other processes.
# One shell waits for the helper, so that its number is nobody else's, the other for the
# end of the pipe. Only the helper carries the marker: a sweep that killed the shells
# first would leave a helper whose environment it may not read.
_WATCHED = """\
exec 3<&2 4<&0 5<&1 </dev/null >/dev/null 2>>"$1"
shift
PPIO_SANDBOX_ID="$0" "$@" <&4 >&5 3<&- 4<&- 5<&- &
helper=$!
exec 4<&- 5<&-
{ read -r _ <&3; kill -9 $helper; } 2>/dev/null &
wait $helper
kill $! 2>/dev/null
"""
_NETNS, _USERNS = "/proc/self/fd/0", "/proc/self/fd/1"


@frozen(kw_only=True)
class Helper:
    """A program that connects a namespace to the network.

    Attributes:
        name: `pasta` or `slirp4netns`.
        path: Where it is.
    """

    name: str
    path: str

    def command(self, uid: int) -> list[str]:
        """Return the command that connects a namespace. Pure.

        Its standard input has to be the network namespace, its standard output the user
        namespace that owns that.

        Args:
            uid: Who runs it; as root, pasta would become another user, who may not
                enter the namespace.
        """
        if self.name == "slirp4netns":
            options = ["--configure", "--mtu=65520", "--disable-host-loopback"]
            options += ["--cidr=10.0.2.0/24", "--userns-path", _USERNS]
            return [self.path, *options, "--netns-type=path", _NETNS, "tap0"]
        options = ["--foreground", "--quiet", "--config-net", "--no-map-gw"]
        options += ["-t", "none", "-u", "none", "-T", "none", "-U", "none"]
        options += ["--dns-forward", _NAMESERVER, "--userns", _USERNS]
        options += ["--netns", _NETNS]
        return [self.path, *options, *(["--runas", "0"] if uid == 0 else [])]


def find_helpers(path: str) -> tuple[Helper, ...]:
    """Return the helpers there are, the better first.

    Args:
        path: Value of `PATH`; the folders of the administrator's programs are looked
            at, too.
    """
    found = []
    for name in ("pasta", "slirp4netns"):
        program = shutil.which(name, path=f"{path}{os.pathsep}{_ADMIN_PATH}")
        if program is not None:
            found.append(Helper(name=name, path=program))
    return tuple(found)


def resolver(host: str) -> str:
    """Return the text of `resolv.conf` inside. Pure.

    Names are asked of the helper, for the resolver of the host may be on its loopback.

    Args:
        host: The text of the host's, of which domains and options are kept.
    """
    kept = [
        line
        for line in host.splitlines()
        if line.split(maxsplit=1)[:1] in (["search"], ["domain"], ["options"])
    ]
    return "\n".join([f"nameserver {_NAMESERVER}", *kept, ""])


def connect(
    helpers: Iterable[Helper], pid: int, *, sandbox_id: str, alive: int, log: Path
) -> subprocess.Popen[bytes]:
    """Connect the network of a process by the first helper that can.

    Args:
        helpers: To be tried in this order.
        pid: The process.
        sandbox_id: Marks the helper for a sweep.
        alive: A pipe that is at its end when the sandbox is; stays the caller's.
        log: Where the helpers' complaints go.

    Returns:
        A process that ends when the helper has, which is soon after the sandbox.

    Raises:
        OSError: The process has ended.
        SandboxStartError: None of them can; with what they said.

    Blocking: 5 s at most for each helper.
    """
    for helper in helpers:
        watcher = _start(helper, pid, sandbox_id, alive, log)
        if watcher is not None:
            return watcher
    raise SandboxStartError(
        f"sandbox {sandbox_id} cannot be connected to the network; do without by"
        f" allow_internet_access=false: {read_tail(log)}"
    )


def _start(
    helper: Helper, pid: int, sandbox_id: str, alive: int, log: Path
) -> subprocess.Popen[bytes] | None:
    """Start a helper and wait until it has connected; None if it cannot."""
    with ExitStack() as until_up:
        netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        until_up.callback(os.close, netns)
        userns = fcntl.ioctl(netns, _NS_GET_USERNS)
        until_up.callback(os.close, userns)
        command = helper.command(os.geteuid())
        watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHED, sandbox_id, str(log), *command],
            stdin=netns,
            stdout=userns,
            stderr=alive,
            env={"PATH": f"/usr/bin:/bin:{_ADMIN_PATH}"},
            start_new_session=True,
        )
        try:
            if _wait_for_route(watcher, pid):
                return watcher
        except BaseException:
            _end(watcher)
            raise
        _end(watcher)
    return None


def _wait_for_route(watcher: subprocess.Popen[bytes], pid: int) -> bool:
    deadline, never = Deadline.after(_LIMIT), threading.Event()
    while watcher.poll() is None and not deadline.expired:
        if _has_route(pid):
            return True
        never.wait(_LOOK_EVERY)
    return False


def _has_route(pid: int) -> bool:
    """Whether the network of a process leads anywhere but to itself."""
    for name, column in (("route", 0), ("ipv6_route", -1)):
        try:
            text = Path(f"/proc/{pid}/net/{name}").read_text(encoding="ascii")
        except FileNotFoundError:  # no IPv6
            continue
        rows = [line.split() for line in text.splitlines()]
        if any(row and row[column] not in ("lo", "Iface") for row in rows):
            return True
    return False


def _end(watcher: subprocess.Popen[bytes]) -> None:
    """End a helper that is of no use, and its shells, which lead its session."""
    with suppress(ProcessLookupError):
        os.killpg(watcher.pid, signal.SIGKILL)
    watcher.wait()
