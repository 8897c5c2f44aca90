"""What a sandbox of bubblewrap sees, as arguments of `bwrap`. Pure.

All of the host that is inside is named here: the programs and libraries of the system,
the interpreter, this package, and the few files of `/etc` that programs need and that
hold no secret. Everything else is the sandbox's own or is not there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from attrs import frozen

__all__ = [
    "APP",
    "BIN",
    "ETC",
    "HOME",
    "LOGS",
    "OWN",
    "TMP",
    "Plan",
    "arguments",
    "interpreter_parts",
    "package_part",
]

APP = "/app"
HOME = "/home/user"
TMP = "/tmp"  # noqa: S108 - the sandbox's own
BIN = "/opt/ppio/bin"
LOGS = "/var/log/ppio"

OWN = {"app": APP, "home": HOME, "tmp": TMP, "logs": LOGS, "shm": "/dev/shm"}  # noqa: S108
"""Folders of the sandbox that can be written: name below its root → path inside."""

ETC = {
    "passwd": "root:x:0:0:root:/root:/usr/sbin/nologin\n"
    f"user:x:1000:1000:user:{HOME}:/bin/bash\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n",
    "hosts": "127.0.0.1 localhost sandbox\n::1 localhost ip6-localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    "hostname": "sandbox\n",
}
"""Files of `/etc` that are the sandbox's own: name → text."""

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# Certificates only, never the folders in which the keys are beside them.
_HOST_ETC = (
    "alternatives",
    "ca-certificates",
    "crypto-policies",
    "fonts",
    "gai.conf",
    "ld.so.cache",
    "ld.so.conf",
    "ld.so.conf.d",
    "localtime",
    "mime.types",
    "pki/ca-trust",
    "pki/tls/cert.pem",
    "pki/tls/certs",
    "pki/tls/openssl.cnf",
    "protocols",
    "services",
    "ssl/certs",
    "ssl/openssl.cnf",
    "timezone",
)
# Settings of the kernel belong to root, and a platform of root runs its sandboxes as the
# same user to the kernel, rights or not. bwrap covers some of them, on some machines.
_KERNEL = (
    "acpi",
    "asound",
    "bus",
    "driver",
    "dynamic_debug",
    "fs",
    "irq",
    "mtrr",
    "pressure",
    "scsi",
    "sys",
    "sysrq-trigger",
)
# Of the folder of an interpreter or a virtual environment, which may be that of a whole
# project with more in it.
_INTERPRETER = (
    "bin",
    "include",
    "lib",
    "lib32",
    "lib64",
    "pyvenv.cfg",
    "share",
    "ssl",
)
_SITES = ("site-packages", "dist-packages")


@frozen(kw_only=True)
class Plan:
    """One sandbox to be.

    Attributes:
        root: Its folder on the host; holds the folders of `OWN`, `bin` and `etc`.
        visible: Further files and folders of the host, read-only at their own paths.
        hidden: Folders of the host that are empty inside, wherever they are, but for
            what of them is in `shown`.
        shown: What is visible, too, even below a hidden folder.
        environment: Of the first process, which is the supervisor.
        command: The supervisor.
        info_fd: Where bwrap writes what it has made.
        rules_fd: Where it reads which calls of the kernel are refused; None for none.
        no_namespaces: Whether nothing inside can make user namespaces; an old bwrap
            cannot see to that.
    """

    root: Path
    visible: Sequence[str]
    hidden: Sequence[str] = ()
    shown: Sequence[str] = ()
    environment: Mapping[str, str]
    command: Sequence[str]
    info_fd: int
    rules_fd: int | None = None
    no_namespaces: bool = True


def arguments(plan: Plan) -> list[str]:
    """Return the arguments of `bwrap` for a sandbox."""
    found = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    found += ["--unshare-net", "--unshare-cgroup-try"]
    if plan.no_namespaces:
        found.append("--disable-userns")
    # No `--die-with-parent`: a sandbox outlives a platform that crashed.
    found += ["--as-pid-1", "--new-session", "--cap-drop", "ALL"]
    found += ["--uid", "1000", "--gid", "1000", "--hostname", "sandbox"]
    found += _name_descriptors(plan)
    for path in _SYSTEM:
        found += ["--ro-bind-try", path, path]
    found += ["--proc", "/proc", "--dev", "/dev"]
    for name in _KERNEL:
        found += ["--ro-bind-try", f"/proc/{name}", f"/proc/{name}"]
    found += _mount_etc(plan.root)
    found += ["--ro-bind", str(plan.root / "bin"), BIN]
    # Before what is visible: an interpreter may be in a folder of one of their names.
    for name, inside in OWN.items():
        found += ["--bind", str(plan.root / name), inside]
    for path in _outermost(plan.visible):
        found += ["--ro-bind-try", path, path]
    outside = (*_SYSTEM, *plan.visible)
    masked = [p for p in plan.hidden if any(_is_below(p, outer) for outer in outside)]
    for path in masked:
        found += ["--tmpfs", path]
    # After its own folders, since what is shown may be below /tmp of the host.
    for path in plan.shown:
        found += ["--ro-bind", path, path]
    found += ["--dir", "/run", "--symlink", "/run", "/var/run"]
    found += ["--symlink", TMP, "/var/tmp"]  # noqa: S108 - the sandbox's own
    # Last: whatever is not one of its own folders cannot be written, memory is not
    # used up by files in the root.
    for path in (*masked, "/dev", "/"):
        found += ["--remount-ro", path]
    found += ["--chdir", HOME]
    for name, value in plan.environment.items():
        found += ["--setenv", name, value]
    return [*found, "--", *plan.command]


def _name_descriptors(plan: Plan) -> list[str]:
    found = ["--info-fd", str(plan.info_fd)]
    if plan.rules_fd is not None:
        found += ["--seccomp", str(plan.rules_fd)]
    return found


def _mount_etc(root: Path) -> list[str]:
    found: list[str] = []
    for name in (*ETC, "resolv.conf"):
        found += ["--ro-bind", str(root / "etc" / name), f"/etc/{name}"]
    for name in _HOST_ETC:
        found += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    return found


def interpreter_parts(prefix: str) -> list[str]:
    """Return what of the folder of an interpreter has to be visible."""
    return [str(PurePosixPath(prefix, name)) for name in _INTERPRETER]


def package_part(origin: str) -> str:
    """Return what has to be visible for a package to be imported.

    That is all that is installed beside it, or, for one that is used from where its
    source is, itself alone.

    Args:
        origin: Its `__init__.py`.
    """
    package = PurePosixPath(origin).parent
    return str(package.parent if package.parent.name in _SITES else package)


def _outermost(paths: Iterable[str]) -> list[str]:
    """Return the paths that are in none of the others, nor in a system folder."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(_is_below(path, outer) for outer in (*_SYSTEM, *found)):
            found.append(path)
    return found


def _is_below(path: str, outer: str) -> bool:
    return PurePosixPath(path).is_relative_to(outer)
