"""envd in a real sandbox: `Start` above all, and the honest refusal of the rest."""

from __future__ import annotations

import base64
import http.client
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from ppio_agent.sandbox.backends.base import ENVD_PORT
from ppio_agent.wire.connect import STREAM_CONTENT_TYPE, FrameReader, encode_frame
from tests.sandbox.sandboxkit import Lab
from tests.support import SLOW, wait_until

COMMAND = "cd /app && sudo -E python app.py"


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        )
    except OSError:
        return False


# Start


def test_a_program_is_told_from_start_to_end(lab: Lab) -> None:
    """`start` with its pid comes first, then its output, then how it ended."""
    stream = lab.start().sh("echo out; echo err >&2; exit 3")
    first = stream.event()
    rest = stream.rest()

    assert stream.status == 200
    assert set(first) == {"start"}
    assert first["start"]["pid"] > 1
    assert (rest["stdout"], rest["stderr"]) == (b"out\n", b"err\n")
    assert rest["end"] == {
        "exitCode": 3,
        "exited": True,
        "status": "exit status 3",
        "error": "exit status 3",
    }
    assert stream.error is None


def test_success_has_no_error(lab: Lab) -> None:
    """`error` is there only if the code is not 0."""
    end = lab.start().start("true").rest()["end"]

    assert end == {"exitCode": 0, "exited": True, "status": "exit status 0"}


def test_a_signal_is_told_by_name(lab: Lab) -> None:
    """The code is then -1, and it did not exit."""
    end = lab.start().sh("kill -9 $$").rest()["end"]

    assert end == {
        "exitCode": -1,
        "exited": False,
        "status": "signal: killed",
        "error": "signal: killed",
    }


def test_the_start_frame_comes_at_once(lab: Lab) -> None:
    """Long before the program says anything."""
    sandbox = lab.start()
    sandbox.start("true").rest()  # envd is loaded when it is first used
    stream = sandbox.start("sleep", "60")
    stream.event()

    assert time.monotonic() - stream.begun < 5 * SLOW
    stream.close()


def test_each_frame_is_whole_in_one_write(lab: Lab) -> None:
    """Head and payload of a frame share an HTTP chunk, the end frame's too."""
    sandbox = lab.start()
    message = json.dumps({"process": {"cmd": "echo", "args": ["hi"]}}).encode()
    body = encode_frame(message)
    with sandbox.running.dial(ENVD_PORT, 5.0) as sock:
        sock.settimeout(10)
        sock.sendall(
            b"POST /process.Process/Start HTTP/1.1\r\nHost: x\r\n"
            b"Content-Type: application/connect+json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            answer += sock.recv(65536)
    rest = answer.partition(b"\r\n\r\n")[2]
    chunks = []
    while (line := rest.partition(b"\r\n"))[0] != b"0":
        size = int(line[0], 16)
        chunks.append(line[2][:size])
        rest = line[2][size + 2 :]

    frames = [FrameReader().feed(chunk) for chunk in chunks]
    assert [len(found) for found in frames] == [1] * 4
    assert [found[0].end for found in frames] == [False, False, False, True]
    assert frames[-1][0].payload == b"{}"


def test_output_comes_in_bounded_pieces_and_bytes_are_kept(lab: Lab) -> None:
    """At most 32 KiB each, and any bytes."""
    script = "import os, sys; sys.stdout.buffer.write(bytes(range(256)) * 1000)"
    stream = lab.start().start("python", "-c", script)
    pieces = [
        base64.b64decode(event["data"]["stdout"]) for event in stream if "data" in event
    ]

    assert bytes(range(256)) * 1000 == b"".join(pieces)
    assert max(map(len, pieces)) <= 32 * 1024


def test_silence_is_broken_at_the_asked_interval(lab: Lab) -> None:
    """A keepalive for each second without data."""
    stream = lab.start().start("sleep", "60", headers={"Keepalive-Ping-Interval": "1"})
    stream.event()

    assert [stream.event(), stream.event()] == [{"keepalive": {}}] * 2
    assert 1.9 < time.monotonic() - stream.begun < 20 * SLOW
    stream.close()


def test_a_client_that_leaves_does_not_end_the_program(lab: Lab) -> None:
    """It goes on, and what it writes blocks nothing."""
    sandbox = lab.start()
    stream = sandbox.sh(
        "for i in 1 2 3 4; do head -c 300000 /dev/zero; done; touch done"
    )
    stream.event()
    stream.close()

    wait_until((sandbox.spec.root / "home" / "done").exists)


def test_a_client_that_does_not_read_loses_the_stream_not_the_program(
    lab: Lab,
) -> None:
    """Past 1 MiB the stream ends with an error, and the program goes on."""
    sandbox = lab.start()
    stream = sandbox.sh("head -c 8000000 /dev/zero; touch done; sleep 60")
    wait_until((sandbox.spec.root / "home" / "done").exists)
    rest = stream.rest()

    assert stream.error is not None
    assert stream.error["code"] == "resource_exhausted"
    assert rest["end"] is None
    assert 2**19 < len(rest["stdout"]) < 8_000_000
    assert sandbox.pids()


def test_input_is_open_unless_it_is_refused(lab: Lab) -> None:
    """`stdin` absent or true is a pipe without data, false is no input."""
    sandbox = lab.start()

    assert sandbox.start("cat", stdin=False).rest()["end"]["exitCode"] == 0
    for stdin in (None, True):
        stream = sandbox.start("cat", stdin=stdin)
        pid = stream.event()["start"]["pid"]
        threading.Event().wait(0.1)
        assert alive(pid)
        stream.close()


def test_a_program_has_the_environment_of_the_sandbox_and_its_own(lab: Lab) -> None:
    """Variables of the request win; the marker stays; no ready descriptor."""
    sandbox = lab.start(env={"A": "sandbox", "B": "sandbox"})
    envs = {"B": "request", "PPIO_SANDBOX_ID": "x"}
    env = dict(
        line.split("=", 1)
        for line in sandbox.start("env", envs=envs).output().splitlines()
    )

    assert (env["A"], env["B"]) == ("sandbox", "request")
    assert env["PPIO_SANDBOX_ID"] == sandbox.spec.sandbox_id
    assert "PPIO_READY_FD" not in env
    assert {"PATH", "HOME", "USER", "LOGNAME", "LANG", "TMPDIR", "HOST", "PORT"} < set(
        env
    )


def test_a_program_starts_in_its_folder(lab: Lab) -> None:
    """Home by default; relative to home; `/app` is the sandbox's own."""
    sandbox = lab.start()
    root = sandbox.spec.root
    (root / "home" / "below").mkdir()

    def where(**process: str) -> str:
        return sandbox.start("pwd", "-P", **process).output().rstrip()

    assert str(root / "home") == where()
    assert str(root / "home" / "below") == where(cwd="below")
    assert str(root / "home" / "below") == where(cwd="/home/user/below")
    assert str(root / "app") == where(cwd="/app")
    # A program may go wherever the user may.
    assert str(root.parent) == where(cwd="../..")
    assert where(cwd="/") == "/"
    stream = sandbox.start("pwd", cwd="missing")
    assert list(stream) == []
    assert stream.error is not None
    assert stream.error["code"] == "invalid_argument"


@pytest.mark.parametrize(
    ("cmd", "code"),
    [
        ("no-such-program", "not_found"),
        ("/etc/passwd", "permission_denied"),
        ("/", "permission_denied"),
    ],
)
def test_a_program_that_cannot_be_run_is_an_error_of_the_stream(
    lab: Lab, cmd: str, code: str
) -> None:
    """The error names it; nothing was started, nothing is left open."""
    sandbox = lab.start()
    folder = f"/proc/{sandbox.running.pid}/fd"
    sandbox.start("true").rest()
    wait_until(lambda: not sandbox.pids())
    before = len(os.listdir(folder))

    for _ in range(3):
        stream = sandbox.start(cmd)
        assert list(stream) == []
        assert stream.error is not None
        assert stream.error["code"] == code
        assert cmd in stream.error["message"]
    wait_until(lambda: len(os.listdir(folder)) <= before)


def test_programs_run_side_by_side_each_in_its_own_group(lab: Lab) -> None:
    """Killing one group leaves the others."""
    sandbox = lab.start()
    streams = [sandbox.sh("sleep 60 & wait") for _ in range(2)]
    pids = [stream.event()["start"]["pid"] for stream in streams]
    wait_until(lambda: len(sandbox.pids()) == 4)

    assert pids == [os.getpgid(pid) for pid in pids]
    os.killpg(pids[0], signal.SIGKILL)
    assert streams[0].rest()["end"]["status"] == "signal: killed"
    assert alive(pids[1])
    streams[1].close()


def test_a_program_left_in_the_background_does_not_hold_the_stream(lab: Lab) -> None:
    """The stream ends with the program that was started; its child lives on."""
    sandbox = lab.start()
    rest = sandbox.sh("sleep 60 & echo $!").rest()

    assert rest["end"]["exitCode"] == 0
    assert alive(int(rest["stdout"]))


# The agent


def test_the_start_command_of_clients_attaches_to_the_running_agent(lab: Lab) -> None:
    """No second agent: its pid, its output from now on, its end."""
    sandbox = lab.serve("import sys\nprint('early', flush=True)\nserve()")
    pid = sandbox.running.agent.pid
    assert pid is not None
    stream = sandbox.sh(COMMAND)

    assert {"start": {"pid": pid}} == stream.event()
    assert len(sandbox.pids()) == 1
    os.kill(pid, signal.SIGTERM)
    rest = stream.rest()
    assert rest["end"]["status"] == "signal: terminated"
    assert rest["stdout"] == b""


def test_the_start_command_attaches_to_an_agent_that_does_not_listen_yet(
    lab: Lab,
) -> None:
    """Nor is a second one started then."""
    sandbox = lab.start("import signal\nsignal.pause()")
    pid = sandbox.wait_phase("starting").pid
    stream = sandbox.sh(COMMAND)

    assert {"start": {"pid": pid}} == stream.event()
    assert sandbox.pids() == {pid}
    stream.close()


def test_the_start_command_starts_an_agent_that_has_ended_again(lab: Lab) -> None:
    """It is then the agent as before: reported, ready, reached."""
    sandbox = lab.serve()
    first = sandbox.running.agent.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    sandbox.wait_phase("exited")
    stream = sandbox.sh(COMMAND, envs={"AGAIN": "yes"})
    second = stream.event()["start"]["pid"]

    assert sandbox.wait_phase("ready", timeout=30).pid == second != first
    assert sandbox.get()["env"]["AGAIN"] == "yes"
    stream.close()


def test_the_start_command_works_without_an_agent_of_the_platform(lab: Lab) -> None:
    """`cd /app`, `sudo` and `python` mean what they mean in the cloud."""
    sandbox = lab.start()
    (sandbox.spec.root / "app" / "app.py").write_text(
        "import sys, os; print(os.getcwd(), sys.executable, sep='\\n')"
    )
    folder, python = sandbox.sh(COMMAND).output().splitlines()

    assert str(sandbox.spec.root / "app") == folder
    assert os.path.samefile(python, os.sys.executable)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("sudo -E -u root -- echo a", "a\n"),
        ("sudo -n A=b env | grep ^A=", "A=b\n"),
        ("sudo -uroot echo -n a", "a"),
        ("sudo", ""),
        ("python3 -c 'import ppio_agent; print(1)'", "1\n"),
        ("cd /app && cd - >/dev/null && cd && pwd | grep -c home", "1\n"),
        ("mkdir -p /app-not; mkdir '$HOME' 2>/dev/null; cd /app; cd ..; ls", None),
    ],
)
def test_the_programs_of_the_sandbox(
    lab: Lab, script: str, expected: str | None
) -> None:
    """Stand-ins do what callers expect of the real ones."""
    found = lab.start().sh(script).output()

    if expected is None:
        assert {"app", "bin", "home", "logs", "tmp"} <= set(found.split())
    else:
        assert expected == found


# The rest


def test_health_needs_no_token_all_else_does(lab: Lab) -> None:
    """The message is the one by which SDKs tell it."""
    sandbox = lab.start(access_token="right")

    assert sandbox.envd("/health") == (204, b"")
    for headers in ({}, {"X-Access-Token": "wrong"}, {"X-Access-Token": "r\xefght"}):
        status, body = sandbox.envd("/files", headers=headers)
        assert status == 401
        assert json.loads(body) == {
            "code": 401,
            "message": "unauthorized access, please provide a valid access token"
            " or method signing if supported",
        }
    assert sandbox.sh("echo", headers={"X-Access-Token": "right"}).output() == "\n"


@pytest.mark.parametrize(
    ("user", "status"), [("user", 501), ("root", 501), ("", 501), ("alice", 401)]
)
def test_only_users_of_the_sandbox_are_known(lab: Lab, user: str, status: int) -> None:
    """Two names mean the one user there is, in the header as in the query."""
    sandbox = lab.start()
    basic = base64.b64encode(f"{user}:".encode()).decode()
    headers = {"Authorization": f"Basic {basic}"}

    assert sandbox.envd("/nothing", headers=headers)[0] == status
    assert sandbox.envd(f"/nothing?username={user}")[0] == status


@pytest.mark.parametrize("header", ["Basic a", "Basic gICA"])
def test_a_user_that_cannot_be_read_is_unknown(lab: Lab, header: str) -> None:
    """It is not taken for none; another scheme is."""
    sandbox = lab.start()

    assert sandbox.envd("/nothing", headers={"Authorization": "Bearer x"})[0] == 501
    assert sandbox.envd("/nothing", headers={"Authorization": header})[0] == 401


def test_a_sandbox_is_measured(lab: Lab) -> None:
    """In the words of the cloud; its CPU time since it was measured last."""
    sandbox = lab.serve(cpus=1.0, memory_mb=512)
    status, body = sandbox.envd("/metrics")
    found = json.loads(body)

    assert status == 200
    assert (found["cpu_count"], found["mem_total"]) == (1, 512 * 1024 * 1024)
    assert 0 < found["mem_used"] < found["mem_total"]
    assert 0 < found["disk_used"] < found["disk_total"]
    assert abs(found["ts"] - time.time()) < 5
    sandbox.start("python", "-c", "sum(range(10**7))").rest()
    assert json.loads(sandbox.envd("/metrics")[1])["cpu_used_pct"] > 5


def test_the_environment_is_told_and_never_set_from_here(lab: Lab) -> None:
    """What every program of the sandbox begins with."""
    sandbox = lab.start(env={"A": "b"})
    status, body = sandbox.envd("/envs")
    found = json.loads(body)

    assert status == 200
    assert (found["A"], found["PPIO_SANDBOX_ID"]) == ("b", sandbox.spec.sandbox_id)
    status, body = sandbox.envd("/init", method="POST", body=b'{"envVars":{"A":"c"}}')
    assert (status, json.loads(body)["code"]) == (403, "permission_denied")


def test_files_are_called_like_processes(lab: Lab) -> None:
    """Also what is done in slices; an error names the file."""
    sandbox = lab.start()
    service = "filesystem.Filesystem"
    for number in range(300):
        (sandbox.spec.root / "home" / f"{number:03}").mkdir()

    assert sandbox.rpc(f"{service}/MakeDir", path="d/e")[0] == 200
    entries = sandbox.rpc(f"{service}/ListDir", path="d")[1]["entries"]
    assert [entry["path"] for entry in entries] == ["/home/user/d/e"]
    status, body = sandbox.rpc(f"{service}/Move", source="d", destination="/app/d")
    assert (status, body["entry"]["path"]) == (200, "/app/d")
    assert len(sandbox.rpc(f"{service}/ListDir")[1]["entries"]) == 301
    assert sandbox.rpc(f"{service}/Remove", path="/app/d") == (200, {})
    assert sandbox.rpc(f"{service}/Stat", path="/app/d") == (
        404,
        {"code": "not_found", "message": "/app/d: no such file or directory"},
    )
    assert sandbox.rpc(f"{service}/Stat", path=1)[0] == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/proto"}, 415),
        ({"Content-Type": "application/json", "Content-Encoding": "gzip"}, 501),
        (
            {
                "Content-Type": "application/json; charset=utf-8",
                "Content-Encoding": "identity",
                "Accept-Encoding": "gzip",
                "Connect-Protocol-Version": "1",
                "User-Agent": "connect",
            },
            200,
        ),
    ],
    ids=["proto", "gzip", "as SDKs do"],
)
def test_a_call_is_plain_json(lab: Lab, headers: dict[str, str], status: int) -> None:
    """Whatever else comes with it; answers are never packed."""
    found, _ = lab.start().envd(
        "/process.Process/List", method="POST", body=b"{}", headers=headers
    )

    assert found == status


@pytest.mark.parametrize(
    "path", ["process.Process/StreamInput", "filesystem.Filesystem/WatchDir"]
)
def test_a_stream_that_is_not_there_is_told_in_a_stream(lab: Lab, path: str) -> None:
    """For clients of streams read nothing else."""
    status, answer = lab.start().envd(
        f"/{path}",
        method="POST",
        body=encode_frame(b"{}"),
        headers={"Content-Type": STREAM_CONTENT_TYPE},
    )
    (frame,) = FrameReader().feed(answer)

    assert (status, frame.end) == (200, True)
    assert json.loads(frame.payload)["error"]["code"] == "unimplemented"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/process.Process/Update"),
        ("POST", "/filesystem.Filesystem/WatchDir"),
        ("GET", "/process.Process/Start"),
        ("GET", "/nothing"),
    ],
)
def test_what_is_not_there_is_unimplemented(lab: Lab, method: str, path: str) -> None:
    """A Connect error with the status that goes with it, naming what was asked."""
    status, body = lab.start().envd(path, method=method)

    assert status == 501
    assert json.loads(body)["code"] == "unimplemented"
    assert path in json.loads(body)["message"]


def test_a_request_of_another_content_type_is_refused(lab: Lab) -> None:
    """And says which one is taken."""
    connection = http.client.HTTPConnection("sandbox")
    connection.sock = lab.start().running.dial(ENVD_PORT, 5.0)
    connection.request("POST", "/process.Process/Start", b"{}")
    response = connection.getresponse()

    assert response.status == 415
    assert response.headers["accept-post"] == STREAM_CONTENT_TYPE
    response.close()
    connection.close()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_argument"),
        (b"\x00\x00", "invalid_argument"),
        (encode_frame(b"{}") * 2, "invalid_argument"),
        (encode_frame(b"{"), "invalid_argument"),
        (b"\x01\x00\x00\x00\x01x", "unimplemented"),
        (b"\x03\x00\x00\x00\x01x", "unimplemented"),
        (encode_frame(b'{"process":{"cmd":"true"}}', end=True), "invalid_argument"),
        (b"\x04" + encode_frame(b"{}")[1:], "invalid_argument"),
    ],
    ids=["empty", "cut", "two", "no JSON", "compressed", "and last", "last", "unknown"],
)
def test_a_body_that_is_no_message_is_an_error_of_the_stream(
    lab: Lab, body: bytes, code: str
) -> None:
    """The one frame of the answer is the end frame."""
    status, answer = lab.start().envd(
        "/process.Process/Start",
        method="POST",
        body=body,
        headers={"Content-Type": STREAM_CONTENT_TYPE},
    )
    (frame,) = FrameReader().feed(answer)

    assert status == 200
    assert frame.end
    assert json.loads(frame.payload)["error"]["code"] == code


def test_envd_is_reached_through_the_platform_only(lab: Lab) -> None:
    """Nothing listens: the connection is one end of a socket pair."""
    sandbox = lab.start()
    with sandbox.running.dial(ENVD_PORT, 5.0) as sock:
        assert sock.family == socket.AF_UNIX
    with (
        pytest.raises(ConnectionRefusedError),
        socket.create_connection(("127.0.0.1", ENVD_PORT), 1.0),
    ):
        pass


def test_many_streams_at_once_are_all_served(lab: Lab) -> None:
    """One thread of the supervisor serves them all."""
    sandbox = lab.start()
    found: list[str] = []

    def run(number: int) -> None:
        found.append(sandbox.start("echo", str(number)).output())

    threads = [threading.Thread(target=run, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(f"{n}\n" for n in range(12)) == sorted(found)
