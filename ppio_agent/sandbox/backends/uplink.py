"""The way to the internet of a sandbox that has a network namespace of its own.

A helper, `pasta` or `slirp4netns`, carries packets between an interface inside and
sockets outside. It maps nothing to the loopback of the host. Two shells stay beside it.
They hold one end of a pipe whose other end only the sandbox has, so that the helper
ends with the sandbox, however that, its monitor or the platform ended; and they start it
again if it ends before, whether there is a platform or not.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from attrs import frozen

from ppio_agent._util.clock import Deadline
from ppio_agent._util.fork import no_fork
from ppio_agent.exceptions import SandboxStartError
from ppio_agent.sandbox.supervisor import tree

from .handles import ForeignProcess
from .startup import read_tail

__all__ = [
    "TUN",
    "Helper",
    "Uplink",
    "connect",
    "find_helpers",
    "refuse_device",
    "resolver",
]

TUN = "/dev/net/tun"

_NAMESERVER = "10.0.2.3"
_NS_GET_USERNS = 0xB701
_LIMIT = 5.0
_END_TOGETHER = 1.0
_LOOK_EVERY = 0.002
_ADMIN_PATH = "/usr/local/sbin:/usr/sbin:/sbin"

# Standard input and output are the two namespaces: a helper may close other descriptors
# that it inherits, and as root it has given up the right to look into other processes.
# One shell waits for the helper, the other for the end of the pipe, which ends them all:
# they are a process group. Only the helper carries the marker: a sweep that killed the
# shells first would leave a helper whose environment it may not read. A signal tells
# that the helper has connected; one that ends before that is of no use, one that ends
# after it is started again.
_WATCHED = """\
exec 3<&2 4<&0 5<&1 </dev/null >/dev/null 2>>"$1"
shift
up=
trap up=1 USR1
{ read -r _ <&3; kill -9 0; } 4<&- 5<&- &
for pause in 0 1 2 4 0; do
    PPIO_SANDBOX_ID="$0" "$@" <&4 >&5 3<&- 4<&- 5<&-
    [ "$up" ] || break
    sleep $pause 3<&- 4<&- 5<&-
done
kill -9 $!
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


class Uplink:
    """The way to the network of one sandbox.

    Args:
        watcher: The shell that leads the helper's process group, a child.
    """

    def __init__(self, watcher: subprocess.Popen[bytes]) -> None:
        self._watcher = watcher
        try:
            self._pidfd = os.pidfd_open(watcher.pid)
        except OSError:
            _end(watcher)
            raise
        self._told_by: Deadline | None = None

    @property
    def lost(self) -> bool:
        """Whether the helper has ended for good."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def lost_before(self, sock: socket.socket) -> bool:
        """Wait until a socket can be read; return whether `lost` comes first.

        By a second: the helper ends with its sandbox, too, and then the socket's end
        is just behind. The second is counted once, whatever messages come in it.
        """
        message, either = select.poll(), select.poll()
        message.register(sock, select.POLLIN)
        either.register(sock, select.POLLIN)
        either.register(self._pidfd, select.POLLIN)
        either.poll()
        if self._told_by is None:
            if not self.lost:
                return False
            self._told_by = Deadline.after(_END_TOGETHER)
        return not message.poll((self._told_by.left() or 0.0) * 1000)

    def close(self) -> None:
        """End the helper and its shells, whatever holds their pipe open. Idempotent."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)
            _end(self._watcher)


def _end(watcher: subprocess.Popen[bytes]) -> None:
    below = list(map(_held, tree.walk(watcher.pid)))
    # It is not reaped, so the number of its group is nobody else's.
    with suppress(ProcessLookupError):
        os.killpg(watcher.pid, signal.SIGKILL)
    watcher.wait()
    # The helper takes a moment to let go of its device.
    deadline = Deadline.after(_LIMIT)
    for process in filter(None, below):
        process.wait(deadline.left() or 0.0)
        process.close()


def _held(pid: int) -> ForeignProcess | None:
    try:
        return ForeignProcess(os.pidfd_open(pid))
    except OSError:  # it has ended
        return None


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


def refuse_device(tun: str) -> str:
    """Return how to let a helper open its device; `""` if it can.

    Args:
        tun: The device by which a helper connects sandboxes to the network.
    """
    try:
        os.close(os.open(tun, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        need = f"the network of sandboxes needs {tun}"
        if error.errno == errno.EACCES:
            return f"{need}, which this user may not open: sudo chmod 666 {tun}"
        return f"{need}: modprobe tun, or --device {tun} for a container"
    return ""


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
) -> Uplink:
    """Connect the network of a process by the first helper that can.

    Args:
        helpers: To be tried in this order.
        pid: The process.
        sandbox_id: Marks the helper for a sweep.
        alive: A pipe that is at its end when the sandbox is; stays the caller's.
        log: Where the helpers' complaints go.

    Returns:
        What holds the helper.

    Raises:
        OSError: The process has ended.
        SandboxStartError: None of them can; with what they said.

    Blocking: 5 s at most for its loopback, and for each helper.
    """
    # A helper sets the loopback up, too, and bwrap ends if that is done before it.
    if not _wait_until(partial(_has_loopback, pid)):
        raise SandboxStartError(f"sandbox {sandbox_id} has got no loopback")
    for helper in helpers:
        uplink = _start(helper, pid, sandbox_id, alive, log)
        if uplink is not None:
            return uplink
    # What pasta writes where there is no syslog explains nothing.
    lines = [line for line in read_tail(log).splitlines() if "to syslog" not in line]
    said = "; ".join(filter(None, lines))
    raise SandboxStartError(
        f"sandbox {sandbox_id} cannot be connected to the network; do without by"
        f" allow_internet_access=false: {said}",
        said=said,
    )


def _start(
    helper: Helper, pid: int, sandbox_id: str, alive: int, log: Path
) -> Uplink | None:
    """Start a helper and wait until it has connected; None if it cannot."""
    with ExitStack() as namespaces:
        netns = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        namespaces.callback(os.close, netns)
        userns = fcntl.ioctl(netns, _NS_GET_USERNS)
        namespaces.callback(os.close, userns)
        command = helper.command(os.geteuid())
        with no_fork():
            watcher = subprocess.Popen(
                ["/bin/sh", "-c", _WATCHED, sandbox_id, str(log), *command],
                stdin=netns,
                stdout=userns,
                stderr=alive,
                env={"PATH": f"/usr/bin:/bin:{_ADMIN_PATH}"},
                start_new_session=True,
            )
    uplink = Uplink(watcher)
    try:
        if _wait_until(lambda: uplink.lost or _has_route(pid)) and not uplink.lost:
            watcher.send_signal(signal.SIGUSR1)
            return uplink
    except BaseException:
        uplink.close()
        raise
    uplink.close()
    return None


def _wait_until(done: Callable[[], bool]) -> bool:
    """Look until something is so; False if it is not in time."""
    deadline, never = Deadline.after(_LIMIT), threading.Event()
    while not done():
        if deadline.expired:
            return False
        never.wait(_LOOK_EVERY)
    return True


def _has_loopback(pid: int) -> bool:
    """Whether the loopback of a process has been set up.

    Raises:
        OSError: The process has ended.
    """
    return "127.0.0.1" in Path(f"/proc/{pid}/net/fib_trie").read_text(encoding="ascii")


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
