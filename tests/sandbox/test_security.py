"""What an agent in a sandbox of bubblewrap tries, and does not achieve.

docs/security.md names these tests. Each attempt is made by a program that runs as the
agent of a sandbox; what it tries to reach is shown to be there by the test itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.fort import Fort
from tests.sandbox.sandboxkit import SERVER, Sandbox
from tests.support import needs_program, processes_marked, wait_until

KEYCTL = {"x86_64": 250, "aarch64": 219}
"""Number of the call that tells, among others, which keyring a session has."""

REFUSED = ("PermissionError", "FileNotFoundError", "ProcessLookupError", "OSError")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="namespaces are Linux's"
)


@pytest.fixture
def fort(tmp_path: Path) -> Iterator[Fort]:
    """A bubblewrap backend; its sandboxes end with the test, and none may be left."""
    fort = Fort(tmp_path)
    yield fort
    fort.close()


def command_lines() -> list[str]:
    """Return the command lines of all processes of the machine."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            found.append((entry / "cmdline").read_bytes().decode("utf-8", "replace"))
        except OSError:
            continue
    return found


# Files


def test_the_files_of_the_host_are_not_there(fort: Fort, tmp_path: Path) -> None:
    """Not its homes, its `/tmp` and `/run`, nor a file somewhere else."""
    secret = tmp_path / "home" / ".ssh" / "id_ed25519"
    secret.parent.mkdir(parents=True)
    secret.write_text("s3cret")
    here = os.listdir(Path.home())

    found = fort.attempt(
        f"""
attempt("secret", lambda: open({str(secret)!r}).read())
attempt("root", lambda: sorted(os.listdir("/")))
attempt("home", lambda: os.listdir("/home"))
attempt("own home", lambda: os.listdir(os.environ["HOME"]))
attempt("host home", lambda: sorted(os.listdir({str(Path.home())!r})))
attempt("tmp", lambda: os.listdir("/tmp"))
attempt("run", lambda: os.listdir("/run"))
attempt("mnt", lambda: os.path.exists("/mnt"))
attempt("sys", lambda: os.path.exists("/sys"))
attempt("up", lambda: os.listdir("/app/../../.."))
"""
    )

    assert found["secret"] == "FileNotFoundError"
    assert found["home"] == ["user"]
    assert found["own home"] == []
    # Of one below the folder for temporary files, too.
    way = Path(sys.prefix).parts
    assert found["tmp"] in ([], [way[2]] if way[1] == "tmp" else [])
    assert found["run"] == []
    assert not found["mnt"]
    assert not found["sys"]
    assert set(found["root"]) == set(found["up"])
    # Of an interpreter in the home folder the way to it is there, and nothing else.
    if found["host home"] != "FileNotFoundError":
        assert len(found["host home"]) < len(here) or here == found["host home"]
        assert not {".ssh", ".config", ".bashrc"} & set(found["host home"])


def test_what_etc_holds_of_the_host_is_no_secret(fort: Fort) -> None:
    """Even where the platform runs as root: no shadow, no keys, no other accounts."""
    found = fort.attempt(
        """
attempt("etc", lambda: sorted(os.listdir("/etc")))
attempt("shadow", lambda: open("/etc/shadow").read())
attempt("keys", lambda: os.listdir("/etc/ssl/private"))
attempt("ssh", lambda: os.listdir("/etc/ssh"))
attempt("accounts", lambda: len(open("/etc/passwd").readlines()))
attempt("sudoers", lambda: open("/etc/sudoers").read())
import ssl
attempt("certificates", lambda: ssl.create_default_context().cert_store_stats()["x509_ca"] > 0)
attempt("resolves", lambda: socket.gethostbyname("localhost"))
"""
    )

    assert found["shadow"] == "FileNotFoundError"
    assert found["keys"] == "FileNotFoundError"
    assert found["ssh"] == "FileNotFoundError"
    assert found["sudoers"] == "FileNotFoundError"
    assert found["accounts"] == 3
    assert found["resolves"] == "127.0.0.1"
    assert "machine-id" not in found["etc"]


def test_other_sandboxes_and_the_data_directory_are_not_there(fort: Fort) -> None:
    """Neither the files of a neighbour nor the database and the key beside them."""
    for name in ("platform.db", "key"):
        (fort.folder / name).write_text("s3cret")
    other = fort.start()
    note = other.spec.root / "app" / "note.txt"
    note.write_text("s3cret")

    found = fort.attempt(
        f"""
attempt("neighbour", lambda: open({str(note)!r}).read())
attempt("data", lambda: os.listdir({str(fort.folder)!r}))
attempt("database", lambda: open({str(fort.folder / "platform.db")!r}).read())
attempt("key", lambda: open({str(fort.folder / "key")!r}).read())
attempt("sockets", lambda: os.listdir({str(fort.sockets)!r}))
attempt("line", lambda: socket.socket(socket.AF_UNIX).connect({other.spec.line.path!r}))
"""
    )

    assert set(found.values()) == {"FileNotFoundError"}


def test_a_data_directory_below_a_visible_folder_is_empty_inside(fort: Fort) -> None:
    """As that of a platform whose files are in the folder of its interpreter."""
    below = Path(sys.prefix) / "lib" / f"ppio-test-{os.getpid()}"
    below.mkdir(parents=True)
    try:
        (below / "key").write_text("s3cret")
        assert fort.attempt(f'attempt("seen", lambda: os.listdir({str(below)!r}))') == {
            "seen": ["key"]
        }
        fort.hide(below)
        assert fort.attempt(f'attempt("seen", lambda: os.listdir({str(below)!r}))') == {
            "seen": []
        }
    finally:
        (below / "key").unlink()
        below.rmdir()


def test_nothing_but_its_own_folders_can_be_written(fort: Fort) -> None:
    """Not the system, the interpreter, this package, or the root of all."""
    found = fort.attempt(
        f"""
def write(path, flags=os.O_CREAT):
    os.close(os.open(path, os.O_WRONLY | flags))

for path in (
    "/usr/x", "/etc/x", "/etc/passwd", "/x", "/bin/sh", "/dev/x", "/run/x", "/var/x",
    "/opt/ppio/bin/python", {sys.prefix + "/lib/x"!r}, {sys.base_prefix + "/lib/x"!r},
    __import__("ppio_agent").__file__,
):
    attempt(path, lambda: write(path))
for path in ("/app/x", "/home/user/x", "/tmp/x", "/var/tmp/x", "/dev/shm/x"):
    attempt("own " + path, lambda: write(path))
"""
    )

    own = {name for name in found if name.startswith("own ")}
    assert {found[name] for name in own} == {None}
    assert {found[name] for name in found.keys() - own} <= set(REFUSED)
    assert len(own) == 5


def test_no_setting_of_the_kernel_can_be_written(fort: Fort) -> None:
    """One of them names a program that the kernel then runs as root, outside."""
    found = fort.attempt(
        """
def writable():
    found = []
    for base, folders, files in os.walk("/proc"):
        if base == "/proc":
            own = {name for name in folders if name.isdigit()}
            folders[:] = set(folders) - own - {"self", "thread-self", "net"}
        paths = [os.path.join(base, name) for name in files]
        found += [path for path in paths if os.access(path, os.W_OK)]
    return found[:20]

attempt("writable", writable)
attempt("core_pattern", lambda: os.open("/proc/sys/kernel/core_pattern", os.O_WRONLY))
attempt("readable", lambda: bool(open("/proc/sys/kernel/core_pattern").read()))
"""
    )

    assert found["writable"] == []
    assert found["core_pattern"] in REFUSED
    assert found["readable"]


# The platform and other processes


def test_processes_of_the_host_are_not_seen_traced_or_signalled(fort: Fort) -> None:
    """There are only those of the sandbox, whatever number is guessed."""
    found = fort.attempt(
        f"""
host = {os.getpid()}
attempt("seen", lambda: sorted(int(n) for n in os.listdir("/proc") if n.isdigit()))
attempt("signal", lambda: os.kill(host, 0) if host > 300 else check(-1))
attempt("environ", lambda: open(f"/proc/{{host}}/environ").read())
attempt("all", lambda: os.kill(-1, 0))
"""
    )

    assert len(found["seen"]) <= 3
    assert found["seen"][0] == 1
    assert found["signal"] in REFUSED
    assert found["environ"] == "FileNotFoundError"


def test_the_supervisor_cannot_be_read_or_traced(fort: Fort) -> None:
    """It knows the token of envd, and has the line to the platform."""
    found = fort.attempt(
        """
class Piece(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

def read_memory():
    buffer = ctypes.create_string_buffer(16)
    own = Piece(ctypes.cast(buffer, ctypes.c_void_p), 16)
    theirs = Piece(ctypes.cast(buffer, ctypes.c_void_p), 16)
    return check(libc.process_vm_readv(1, ctypes.byref(own), 1, ctypes.byref(theirs), 1, 0))

def take_descriptor():
    return check(libc.syscall(438, os.pidfd_open(1), 3, 0))  # pidfd_getfd

attempt("mem", lambda: open("/proc/1/mem", "rb").read(1))
attempt("mem, to write", lambda: open("/proc/1/mem", "wb").write(b"x"))
attempt("maps", lambda: open("/proc/1/maps").read())
attempt("environ", lambda: open("/proc/1/environ").read())
attempt("descriptor", lambda: os.readlink("/proc/1/fd/3"))
attempt("descriptor opened", lambda: open("/proc/1/fd/2", "a").write("x"))
attempt("descriptor taken", take_descriptor)
attempt("root", lambda: os.listdir("/proc/1/root"))
attempt("attach", lambda: check(libc.ptrace(16, 1, 0, 0)))
attempt("seize", lambda: check(libc.ptrace(0x4206, 1, 0, 0)))
attempt("readv", read_memory)
""",
        access_token="s3cret",
    )

    assert set(found.values()) == {"PermissionError"}


def test_the_supervisor_cannot_be_ended_or_stopped(fort: Fort) -> None:
    """Whatever signal it is sent from inside, it goes on."""
    sandbox = fort.start(
        """
        import os, signal, threading
        for signum in sorted(signal.valid_signals()):
            os.kill(1, signum)
        print("sent", flush=True)
        threading.Event().wait()
        """
    )
    wait_until(lambda: _logged(sandbox, "sent"))

    assert sandbox.running.usage().processes == 1
    state = Path(f"/proc/{sandbox.running.pid}/stat").read_text().rpartition(")")[2]
    assert state.split()[0] in "SR"
    assert sandbox.lost == []


def test_what_an_agent_inherits_is_only_what_it_is_told_of(fort: Fort) -> None:
    """No descriptor of the platform, no terminal, no key of the user's session."""
    found = fort.attempt(
        """
attempt("fds", lambda: [fd for fd in range(256) if os.path.exists(f"/proc/self/fd/{fd}")])
attempt("terminal", lambda: open("/dev/tty").read())
attempt("secrets", lambda: [n for n in os.environ if "KEY" in n or "TOKEN" in n])
attempt("keyring", lambda: libc.syscall(KEYCTL.get(os.uname().machine, -1), 0, -3, 0))
""".replace("KEYCTL", repr(KEYCTL))
    )
    libc = ctypes.CDLL(None)
    ours = libc.syscall(KEYCTL.get(os.uname().machine, -1), 0, -3, 0)

    assert found.pop("keyring") != ours or ours == -1
    assert found == {"fds": [0, 1, 2, 3], "terminal": "OSError", "secrets": []}


# Rights


def test_no_right_can_be_gained(fort: Fort) -> None:
    """No capability, no user namespace with new ones, no mount, no set-user-id."""
    found = fort.attempt(
        """
def status(name):
    for line in open("/proc/self/status"):
        if line.startswith(name + ":"):
            return line.split()[1]

for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
    attempt(name, lambda: int(status(name), 16))
attempt("NoNewPrivs", lambda: status("NoNewPrivs"))
attempt("uid", lambda: [os.getuid(), os.geteuid(), os.getgid(), os.getgroups()])
attempt("setuid", lambda: os.setuid(0))
attempt("mount", lambda: check(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None)))
attempt("umount", lambda: check(libc.umount2(b"/usr", 2)))
attempt("remount", lambda: check(libc.mount(None, b"/", None, 32, None)))
attempt("chroot", lambda: os.chroot("/tmp"))
attempt("namespace", lambda: check(libc.unshare(0x10000000)))
attempt("mounts", lambda: check(libc.unshare(0x00020000)))
attempt("host", lambda: socket.sethostname("x"))
attempt("device", lambda: os.mknod("/tmp/sda", 0o60600, os.makedev(8, 0)))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1) and 0)
"""
    )

    caps = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    assert [found[name] for name in caps] == [0] * 5
    assert found["NoNewPrivs"] == "1"
    assert found["uid"][:3] == [1000, 1000, 1000]
    assert found["setuid"] in REFUSED
    for name in ("mount", "umount", "remount", "chroot", "mounts", "host"):
        assert found[name] == "PermissionError", name
    assert found["device"] == "PermissionError"
    assert found["raw"] == "PermissionError"
    if fort.bwrap.no_namespaces:
        assert found["namespace"] == "OSError"


def test_a_table_of_processes_is_not_filled_for_others(fort: Fort) -> None:
    """At 256 there are no more, or, for a platform of root, the sandbox ends."""
    sandbox = fort.start(
        """
        import os, threading
        made = 0
        try:
            while made < 600:
                if os.fork() == 0:
                    threading.Event().wait()
                made += 1
        except BlockingIOError:
            print("refused at", made, flush=True)
        threading.Event().wait()
        """,
        memory_mb=65536,  # which they would use up before
    )
    wait_until(lambda: sandbox.lost or _logged(sandbox, "refused at"), timeout=20.0)

    if sandbox.lost:
        assert sandbox.lost == ["memory"]
    else:
        assert sandbox.running.usage().processes <= 256


# The network


def test_without_internet_nothing_outside_is_reached(fort: Fort) -> None:
    """No service of the host's loopback, whatever its kind, and no other machine."""
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as local:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        local.bind(f"\0ppio-test-{os.getpid()}")
        local.listen()
        port = tcp.getsockname()[1]
        found = fort.attempt(
            f"""
attempt("tcp", lambda: socket.create_connection(("127.0.0.1", {port}), 2) and 0)
abstract = "\\0ppio-test-{os.getpid()}"
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect(abstract))
attempt("out", lambda: socket.create_connection(("192.0.2.1", 80), 2) and 0)
attempt("interfaces", lambda: [name for _, name in socket.if_nameindex()])
"""
        )

    assert found["tcp"] == "ConnectionRefusedError"
    assert found["abstract"] == "ConnectionRefusedError"
    assert found["out"] == "OSError"
    assert found["interfaces"] == ["lo"]


def test_no_socket_is_of_a_family_that_no_namespace_covers(fort: Fort) -> None:
    """As that to the host of a virtual machine; nor by a way around that."""
    found = fort.attempt(
        """
def open_sockets(families, make=socket.socket):
    for family in families:
        try:
            make(family, socket.SOCK_STREAM)
        except OSError as exc:
            yield exc.errno

refused = errno.EAFNOSUPPORT
others = set(range(50)) - {1, 2, 10, 16}
attempt("others", lambda: set(open_sockets(others)) == {refused})
attempt("pairs", lambda: set(open_sockets(others, socket.socketpair)) == {refused})
attempt("usual", lambda: list(open_sockets((1, 2))))
attempt("pair", lambda: list(open_sockets((1,), socket.socketpair)))
attempt("netlink", lambda: socket.socket(16, socket.SOCK_RAW) and 0)
attempt("host", lambda: socket.socket(40, socket.SOCK_STREAM).connect((2, 22)))
buffer = ctypes.create_string_buffer(128)
attempt("io_uring", lambda: check(libc.syscall(425, 4, buffer)))
if os.uname().machine == "x86_64":
    attempt("x32", lambda: check(libc.syscall(0x40000000 + 41, 40, 1, 0)))
"""
    )

    assert found.pop("x32", "OSError") == "OSError"
    assert found == {
        "others": True,
        "pairs": True,
        "usual": [],
        "pair": [],
        "netlink": 0,
        "host": "OSError",
        "io_uring": "OSError",
    }


@pytest.mark.parametrize("helper", ["pasta", "slirp4netns"])
def test_with_internet_the_loopback_of_the_host_is_not_reached(
    tmp_path: Path, helper: str
) -> None:
    """Neither by its name, nor by the gateway, nor by an address of the host."""
    needs_program(helper)
    fort = Fort(tmp_path, helper=helper)
    with socket.socket() as service:
        service.bind(("127.0.0.1", 0))
        service.listen()
        service.setblocking(False)
        port = service.getsockname()[1]
        own = _addresses()
        try:
            found = fort.attempt(
                f"""
def gateway():
    for line in open("/proc/net/route").read().splitlines()[1:]:
        fields = line.split()
        if fields[1] == "00000000":
            return socket.inet_ntoa(bytes.fromhex(fields[2])[::-1])

attempt("interfaces", lambda: len(socket.if_nameindex()))
places = ["127.0.0.1", "127.0.0.53", "10.0.2.2", "10.0.2.3", gateway(), *{own!r}]
for place in filter(None, places):
    attempt(place, lambda: socket.create_connection((place, {port}), 1) and "reached")
""",
                allow_internet=True,
            )
        finally:
            fort.close()

        assert found.pop("interfaces") == 2
        assert "reached" not in found.values()
        with pytest.raises(BlockingIOError):
            service.accept()


def _addresses() -> list[str]:
    """Return an address of this machine that is not of its loopback, if it has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [probe.getsockname()[0]]


# The end

FLED = """
import os, signal, subprocess, sys, threading
for signum in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(signum, signal.SIG_IGN)
wait = "import threading; threading.Event().wait()  # %(token)s"
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execve(sys.executable, ["x", "-c", wait], {})
        os._exit(0)
"""


def _logged(sandbox: Sandbox, text: str) -> bool:
    log = sandbox.spec.root / "logs" / "agent.log"
    return log.exists() and text in log.read_text()


@pytest.mark.parametrize("how", ["request", "supervisor", "monitor"])
def test_nothing_outlives_its_sandbox(fort: Fort, how: str) -> None:
    """Other sessions, double forks, deaf ones, those without an environment: all gone.

    Be the end asked for, or its supervisor killed, or the monitor of bwrap before.
    """
    token = f"token-{os.urandom(8).hex()}"
    source = FLED % {"token": token} + SERVER + "\nserve()"
    sandbox = fort.start(source, allow_internet=bool(fort.bwrap.helpers))
    sandbox.wait_phase("ready")
    wait_until(lambda: sum(token in line for line in command_lines()) == 2)

    if how == "monitor":
        os.kill(_parent(sandbox.running.pid), signal.SIGKILL)
        assert sandbox.get()["count"] == 1  # the sandbox goes on
    if how == "supervisor":
        os.kill(sandbox.running.pid, signal.SIGKILL)
        wait_until(lambda: sandbox.lost == ["crashed"])
    else:
        sandbox.running.kill(0.2)

    assert [line for line in command_lines() if token in line] == []
    # bwrap and the helper go after what they held, with nobody to wait for them.
    ours = sandbox.spec.sandbox_id
    wait_until(lambda: not any(ours in line for line in command_lines()))
    wait_until(lambda: not any(processes_marked(ours)))


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


def test_paused_processes_stand_still_and_go_on(fort: Fort) -> None:
    """The supervisor finds and stops them in its own namespace."""
    sandbox = fort.serve(
        """
        import threading
        threading.Thread(target=serve, daemon=True).start()
        while True:
            pass
        """
    )
    sandbox.running.pause()
    before = sandbox.running.usage().cpu_seconds
    threading.Event().wait(0.3)
    assert before == sandbox.running.usage().cpu_seconds

    sandbox.running.resume()
    assert sandbox.get()["count"] == 1
