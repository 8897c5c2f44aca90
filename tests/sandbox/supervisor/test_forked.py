"""Agents that are forks: for their program all is as after an exec."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.sandbox.supervisor.forked import BASE_ENVIRONMENT, Warm
from ppio_agent.sandbox.supervisor.spawn import Command
from tests.sandbox.sandboxkit import Lab, Sandbox

PROBE = '''
"""What a program finds around it."""
facts = {"globals": {n: repr(v) for n, v in globals().items() if n != "facts"}}
import atexit, gc, inspect, io, json, logging, os, random, resource, signal, site
import sys, threading, time, warnings

class Here:
    pass

def stream(one):
    return [
        one.name, one.mode, one.encoding, one.errors, one.newlines, one.isatty(),
        one.line_buffering, one.write_through, one.fileno(), one.readable(),
        one.writable(), one.seekable(), type(one.buffer).__name__,
        one.buffer.name, one.buffer.mode,
    ]

main = sys.modules["__main__"]
status = dict(
    line.split(":\\t") for line in open("/proc/self/status").read().splitlines()
)
facts.update({
    "main": [Here.__module__, Here.__qualname__, main.__dict__ is globals()],
    "loader": [type(__loader__).__name__, __loader__.path, __loader__.name],
    "source": inspect.getsource(Here),
    "sys": [
        sys.argv, sys.orig_argv, sys.path, repr(sys.flags), sys.executable,
        sys.prefix, sys.exec_prefix, sys.base_prefix, sys.getrecursionlimit(),
        sys.getswitchinterval(), sys.dont_write_bytecode, sys.warnoptions,
        sys._xoptions, sys.getfilesystemencoding(), sys.getdefaultencoding(),
        sys.displayhook is sys.__displayhook__,
        sys.gettrace(), sys.getprofile(), hasattr(sys, "last_value"),
        sys.stdout is sys.__stdout__, [type(f).__name__ for f in sys.meta_path],
    ],
    "streams": [stream(sys.stdin), stream(sys.stdout), stream(sys.stderr)],
    "stdin": sys.stdin.read(),
    "env": dict(os.environ),
    "environb": {k.decode(): v.decode() for k, v in os.environb.items()},
    "child": os.popen("env | sort").read(),
    "site": [site.USER_BASE, site.USER_SITE, site.ENABLE_USER_SITE],
    "signals": {
        s: repr(signal.getsignal(s)) for s in sorted(signal.valid_signals())
    },
    "masks": [status[name] for name in ("SigBlk", "SigIgn", "SigCgt")],
    "wakeup": signal.set_wakeup_fd(-1),
    "fds": [fd for fd in range(5000) if os.path.exists(f"/proc/self/fd/{fd}")],
    "inherited": [os.get_inheritable(fd) for fd in range(4)],
    "blocking": [os.get_blocking(fd) for fd in range(4)],
    "limits": {
        name: resource.getrlimit(getattr(resource, name))
        for name in dir(resource) if name.startswith("RLIMIT_")
    },
    "umask": os.umask(0o22),
    "group": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getppid()],
    "cwd": os.getcwd(),
    "affinity": len(os.sched_getaffinity(0)),
    "threads": [repr(t).split()[0] for t in threading.enumerate()],
    "main thread": threading.main_thread() is threading.current_thread(),
    "gc": [gc.isenabled(), gc.get_threshold(), len(gc.garbage)],
    "logging": [
        logging.root.level, logging.root.handlers, logging.root.disabled,
        logging.lastResort.level, logging.getLoggerClass().__name__,
    ],
    "warnings": [repr(f) for f in warnings.filters],
    "time": [time.tzname, time.timezone],
    "nice": os.nice(0),
    "forked": open("/proc/self/comm").read() == "ppio-agent\\n",
})
with open("facts.json", "w") as file:
    json.dump(facts, file)
'''


def anonymous(text: str, sandbox: Sandbox) -> str:
    """Return text without what is different in each sandbox."""
    text = text.replace(str(sandbox.spec.root), "<root>")
    return text.replace(sandbox.spec.sandbox_id, "<id>")


def run(lab: Lab, source: str | bytes, **options: Any) -> tuple[object, ...]:
    """Return exit code, signal and last output of an agent."""
    text = source if isinstance(source, str) else source.decode("latin-1")
    spec = lab.spec(text, **options)
    if isinstance(source, bytes):
        (spec.root / "app" / "app.py").write_bytes(source)
    sandbox = lab.begin(spec)
    status = sandbox.wait_phase("exited")
    return status.exit_code, status.signal, anonymous(status.log_tail, sandbox)


def probe(lab: Lab, **options: Any) -> dict[str, Any]:
    """Return what an agent finds around it."""
    sandbox = lab.start(PROBE, **options)
    assert sandbox.wait_phase("exited").exit_code == 0, sandbox.statuses
    text = (sandbox.spec.root / "app" / "facts.json").read_text()
    facts: dict[str, Any] = json.loads(anonymous(text, sandbox))
    for name in ("env", "environb"):
        assert facts[name].pop("PORT").isdigit()
    facts["child"] = [
        line for line in facts["child"].splitlines() if "PORT=" not in line
    ]
    facts["globals"]["__loader__"] = facts["globals"]["__loader__"].partition(" at ")[0]
    return facts


def test_a_program_finds_the_same_around_it_as_after_exec(
    lab: Lab, warm_lab: Lab
) -> None:
    """Names, path, streams, environment, signals, descriptors, limits and the rest."""
    env = {"TZ": "Asia/Tokyo", "MODEL": "m"}
    expected, found = probe(lab, env=env), probe(warm_lab, env=env)

    assert (expected.pop("forked"), found.pop("forked")) == (False, True)
    assert expected == found


PROGRAMS = {
    "an error in a function": """
        import json
        def parse(text):
            return json.loads(text)
        print("before")
        try:
            parse("{")
        except ValueError as exc:
            raise LookupError("no model") from exc
        """,
    "a file that is no Python": "print('never')\nif\n",
    "a file of another encoding": b"# coding: latin-1\nprint(ascii('\xe4'))\n",
    "a message as exit": "raise SystemExit('no luck')",
    "a number as exit": "import sys\nsys.exit(7)",
    "an exit at once": "import os\nos._exit(9)",
    "the end of the file": "print('done')",
    "an interrupt": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\ninput()",
    "a signal": "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\ninput()",
    "a broken pipe": """
        import os
        reader, writer = os.pipe()
        os.close(reader)
        os.write(writer, b"x")
        """,
    "a file that is too large": """
        with open("large", "wb") as file:
            file.truncate(2**30 + 1)
        """,
    "threads that outlive it": """
        import atexit, threading
        atexit.register(print, "at exit")
        threading.Timer(0.05, print, ["thread"]).start()
        print("main", threading.active_count())
        """,
    "a hook for errors": """
        import sys, traceback
        def hook(kind, exc, frames):
            print(kind, exc, len(traceback.extract_tb(frames)))
        sys.excepthook = hook
        def fail():
            raise ValueError("x")
        fail()
        """,
    "a hook that fails": """
        import sys
        sys.excepthook = lambda *_: 1 / 0
        raise ValueError("x")
        """,
    "warnings": """
        import warnings
        for _ in range(2):
            warnings.warn("old", DeprecationWarning)
        """,
    "asyncio": """
        import asyncio
        async def main():
            process = await asyncio.create_subprocess_exec("echo", "sub")
            return await process.wait(), await asyncio.to_thread(int, "5")
        print(asyncio.run(main()))
        """,
    "processes of its own": """
        import multiprocessing, os, pickle, subprocess, sys
        from concurrent.futures import ProcessPoolExecutor
        class Point:
            x = 1
        def double(point):
            return type(point).__module__, point.x * 2
        if __name__ == "__main__":
            assert type(pickle.loads(pickle.dumps(Point()))) is Point
            for way in ("fork", "spawn"):
                context = multiprocessing.get_context(way)
                with ProcessPoolExecutor(1, mp_context=context) as pool:
                    print(way, pool.submit(double, Point()).result())
            command = [sys.executable, "-c", "import sys; print(sys.flags, sys.path)"]
            print(subprocess.run(command, capture_output=True).stdout)
            if os.fork() == 0:
                sys.exit(3)
            print(os.waitstatus_to_exitcode(os.wait()[1]))
        """,
    "an app that says when it listens": """
        import os, threading
        from ppio_agent.serving import PPIOAgentRuntimeApp
        app = PPIOAgentRuntimeApp()
        app.entrypoint(lambda request: request)
        reader, writer = os.pipe()
        os.dup2(writer, int(os.environ["PPIO_READY_FD"]))
        threading.Thread(target=app.run, daemon=True).start()
        print(os.read(reader, 8), flush=True)
        os._exit(0)
        """,
    "its main thread": """
        import os, threading
        print(threading.main_thread().native_id == os.getpid())
        """,
    "descriptors that it opens": """
        import gc, os, tempfile
        files = [tempfile.TemporaryFile() for _ in range(40)]
        os.write(int(os.environ["PPIO_READY_FD"]), b"x")
        for _ in range(3):
            gc.collect()
        for file in files:
            file.write(b"x")
            file.close()
        os.close(3)
        print("all there")
        """,
}
"""Programs by how they end, or what they need."""


@pytest.mark.parametrize("source", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_does_the_same_as_after_exec(
    lab: Lab, warm_lab: Lab, source: str | bytes
) -> None:
    """Exit code, signal and output, with no frame but the program's own."""
    assert run(lab, source) == run(warm_lab, source)


def test_each_fork_has_random_numbers_and_ids_of_its_own(warm_lab: Lab) -> None:
    """What is drawn from a state that was forked would be the same in all."""
    source = """
        import random, secrets, tempfile
        from ppio_agent._util.ids import new_id
        print(random.random(), new_id(), tempfile.mkdtemp(), secrets.token_hex(8))
        """
    said = [str(run(warm_lab, source)[2]).split() for _ in range(2)]

    assert all(mine != other for mine, other in zip(*said, strict=True))


def test_a_later_start_of_an_agent_is_by_exec(warm_lab: Lab) -> None:
    """Only the first is a fork; the agent is as it was."""
    sandbox = warm_lab.serve()
    first = sandbox.get()
    pid = sandbox.running.agent.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    sandbox.wait_phase("exited")
    stream = sandbox.sh("cd /app && sudo -E python app.py")
    sandbox.wait_phase("ready")

    assert sandbox.get()["env"] == first["env"]
    assert sandbox.get()["pid"] != first["pid"]
    stream.close()


# What is not forked

COMMAND = Command((sys.executable, "app.py"), BASE_ENVIRONMENT, "")


def suits(folder: Path, files: Mapping[str, str], **changes: Any) -> bool:
    """Return whether a program is forked that has these files beside it."""
    for path, text in {"app.py": "", **files}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    command = COMMAND._replace(cwd=str(folder), **changes)
    return Warm(frozenset({"flask", "json", "ppio_agent"})).suits(command)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"tools.py": "", "data/model.bin": "", "json.txt": ""}, True),
        ({"package/json.py": "", "package/__init__.py": ""}, True),
        ({"json.py": ""}, False),
        ({"flask/__init__.py": ""}, False),
        ({"vendor/flask/__init__.py": ""}, False),
        ({"vendor/flask.cpython-311-x86_64-linux-gnu.so": ""}, False),
    ],
)
def test_a_program_with_files_in_place_of_loaded_modules_is_not_forked(
    tmp_path: Path, files: Mapping[str, str], *, expected: bool
) -> None:
    """Nor one that may put them on its path; names inside its packages are its own."""
    assert suits(tmp_path, files) is expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"MODEL": "m", "PATH": "/bin", "TZ": "UTC"}, True),
        ({"PYTHONPATH": "/x"}, False),
        ({"PYTHONUNBUFFERED": "0"}, False),
        ({"LD_PRELOAD": "x.so"}, False),
        ({"LC_ALL": "C"}, False),
        ({"LANG": "de_DE.UTF-8"}, False),
    ],
)
def test_a_program_with_variables_for_the_start_is_not_forked(
    tmp_path: Path, changes: Mapping[str, str], *, expected: bool
) -> None:
    """Those that an interpreter or the C library reads at its start alone."""
    assert suits(tmp_path, {}, env={**BASE_ENVIRONMENT, **changes}) is expected


def test_a_program_with_packages_of_its_user_is_not_forked(tmp_path: Path) -> None:
    """What `pip install --user` has put below the home folder is found."""
    (tmp_path / "home/.local/lib").mkdir(parents=True)
    env = {**BASE_ENVIRONMENT, "HOME": str(tmp_path / "home")}

    assert not suits(tmp_path / "app", {}, env=env)


def test_a_program_is_not_forked_once_a_loaded_package_was_changed(
    tmp_path: Path,
) -> None:
    """The fork would have parts of two versions."""
    assert suits(tmp_path, {})
    package = tmp_path / "package.py"
    package.write_text("")
    warm = Warm(frozenset(), ((str(package), package.stat().st_mtime_ns),))
    command = COMMAND._replace(cwd=str(tmp_path))
    assert warm.suits(command)

    os.utime(package, (1, 1))
    assert not warm.suits(command)
    package.unlink()
    assert not warm.suits(command)


@pytest.mark.parametrize(
    "argv",
    [("/bin/other", "app.py"), (sys.executable, "missing.py"), (sys.executable,)],
)
def test_another_python_or_a_missing_file_is_not_forked(
    tmp_path: Path, argv: tuple[str, ...]
) -> None:
    """The interpreter that is asked for says what is wrong."""
    assert not suits(tmp_path, {}, argv=argv)
