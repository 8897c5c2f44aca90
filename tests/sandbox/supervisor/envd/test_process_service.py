"""What callers may do with programs that run. How they are started: `test_envd`."""

from __future__ import annotations

import base64
import hashlib
import threading

import pytest

from tests.sandbox.sandboxkit import Lab, Sandbox, StartStream
from tests.support import wait_until

PROCESS = "process.Process"


def listed(sandbox: Sandbox) -> list[dict[str, object]]:
    """Return what `List` tells."""
    status, body = sandbox.rpc(f"{PROCESS}/List")
    assert status == 200
    found: list[dict[str, object]] = body["processes"]
    return found


def pid_of(stream: StartStream) -> int:
    """Return the process that a stream begins with."""
    pid: int = stream.event()["start"]["pid"]
    return pid


def feed(sandbox: Sandbox, pid: int, data: bytes) -> tuple[int, dict[str, object]]:
    """Give a process input."""
    text = base64.b64encode(data).decode()
    return sandbox.rpc(
        f"{PROCESS}/SendInput", process={"pid": pid}, input={"stdin": text}
    )


def test_live_programs_are_listed_and_no_others(lab: Lab) -> None:
    """As they were asked for, while they run, the agent first."""
    sandbox = lab.serve()
    agent = sandbox.running.agent.pid
    stream = sandbox.start("sleep", "60", envs={"A": "b"}, cwd="/app", stdin=None)
    pid = pid_of(stream)

    assert listed(sandbox) == [
        {"config": {"cmd": "python", "args": ["app.py"], "cwd": "/app"}, "pid": agent},
        {
            "config": {
                "cmd": "sleep",
                "args": ["60"],
                "envs": {"A": "b"},
                "cwd": "/app",
            },
            "pid": pid,
        },
    ]
    kill = {"process": {"pid": str(pid)}, "signal": "SIGNAL_SIGKILL"}
    assert sandbox.rpc(f"{PROCESS}/SendSignal", **kill) == (200, {})
    assert sandbox.rpc(f"{PROCESS}/SendSignal", **kill)[0] == 404
    assert stream.rest()["end"]["status"] == "signal: killed"
    assert [each["pid"] for each in listed(sandbox)] == [agent]


def test_a_signal_goes_to_the_whole_group(lab: Lab) -> None:
    """Also to what a shell has started; by number as well as by name."""
    sandbox = lab.start()
    stream = sandbox.sh("sleep 60 & sleep 60 & wait")
    pid = pid_of(stream)
    wait_until(lambda: len(sandbox.pids()) == 3)
    sandbox.rpc(f"{PROCESS}/SendSignal", process={"pid": pid}, signal=15)

    assert stream.rest()["end"]["status"] == "signal: terminated"
    wait_until(lambda: not sandbox.pids())


def test_a_program_is_found_by_its_tag(lab: Lab) -> None:
    """Which `List` tells, too."""
    sandbox = lab.start()
    sock = sandbox.running.dial(49983, 5.0)
    stream = StartStream(sock, {"process": {"cmd": "cat"}, "tag": "mine"}, {})
    pid = pid_of(stream)

    assert listed(sandbox) == [{"config": {"cmd": "cat"}, "pid": pid, "tag": "mine"}]
    assert sandbox.rpc(f"{PROCESS}/CloseStdin", process={"tag": "mine"}) == (200, {})
    assert stream.rest()["end"]["exitCode"] == 0


def test_who_connects_is_told_what_comes_from_then_on(lab: Lab) -> None:
    """Nothing of before; the first caller may leave or stay."""
    sandbox = lab.start()
    first = sandbox.start("cat", stdin=True)
    pid = pid_of(first)
    feed(sandbox, pid, b"before")
    assert first.event()["data"] == {"stdout": base64.b64encode(b"before").decode()}
    second = sandbox.follow(pid)
    assert second.event() == {"start": {"pid": pid}}
    feed(sandbox, pid, b"after")
    first.close()
    sandbox.rpc(f"{PROCESS}/CloseStdin", process={"pid": pid})
    rest = second.rest()

    assert rest["stdout"] == b"after"
    assert rest["end"]["exitCode"] == 0
    again = sandbox.follow(pid)
    assert list(again) == []
    assert again.error == {
        "code": "not_found",
        "message": f"process with pid {pid} not found",
    }


def test_input_arrives_whole_and_before_its_end(lab: Lab) -> None:
    """More than a pipe holds: the answer comes when the program has taken it."""
    sandbox = lab.start()
    stream = sandbox.sh("sleep 0.3; sha256sum | cut -c1-8; echo done", stdin=True)
    pid = pid_of(stream)
    threads = [
        threading.Thread(target=feed, args=(sandbox, pid, b"x" * 1_000_000))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    sandbox.rpc(f"{PROCESS}/CloseStdin", process={"pid": pid})

    digest = hashlib.sha256(b"x" * 2_000_000).hexdigest()[:8]
    assert stream.output() == f"{digest}\ndone\n"


def test_input_that_nobody_reads_is_bounded(lab: Lab) -> None:
    """What waits is kept up to a limit, and refused at the end of the program."""
    sandbox = lab.start()
    stream = sandbox.start("sleep", "60", stdin=True)
    pid = pid_of(stream)
    answers: list[tuple[int, dict[str, object]]] = []

    def send() -> None:
        answers.append(feed(sandbox, pid, bytes(2_500_000)))

    threads = [threading.Thread(target=send) for _ in range(5)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answers) >= 2, timeout=15)
    sandbox.rpc(f"{PROCESS}/SendSignal", process={"pid": pid}, signal=9)
    for thread in threads:
        thread.join(20)

    codes = sorted(str(body["code"]) for _, body in answers)
    assert codes == ["failed_precondition"] * 3 + ["resource_exhausted"] * 2
    stream.close()


def test_input_after_its_end_is_refused(lab: Lab) -> None:
    """Also of a program that never had any; closing it again is nothing."""
    sandbox = lab.start()
    fed = sandbox.start("sleep", "60", stdin=True)
    unfed = sandbox.start("sleep", "60", stdin=False)
    for stream in (fed, unfed):
        pid = pid_of(stream)
        for _ in range(2):
            assert sandbox.rpc(f"{PROCESS}/CloseStdin", process={"pid": pid})[0] == 200
        status, body = feed(sandbox, pid, b"x")
        assert (status, body["code"]) == (400, "failed_precondition")
        stream.close()


@pytest.mark.parametrize("call", ["SendSignal", "SendInput", "CloseStdin"])
def test_an_unknown_process_is_named(lab: Lab, call: str) -> None:
    """Clients in the field look at the code, people at the text."""
    message = {"signal": "SIGNAL_SIGTERM", "input": {"stdin": "eA=="}}

    assert lab.start().rpc(f"{PROCESS}/{call}", process={"pid": 1}, **message) == (
        404,
        {"code": "not_found", "message": "process with pid 1 not found"},
    )


@pytest.mark.parametrize(
    ("call", "message", "code"),
    [
        ("SendSignal", {"process": {"pid": 1}}, "invalid_argument"),
        ("SendSignal", {"process": {"pid": 1}, "signal": 2}, "invalid_argument"),
        ("SendSignal", {"signal": 9}, "invalid_argument"),
        ("SendInput", {"process": {"pid": 1}}, "invalid_argument"),
        ("SendInput", {"process": {"pid": 1}, "input": {"pty": ""}}, "unimplemented"),
        ("CloseStdin", {"process": {"pid": -1}}, "invalid_argument"),
        ("Update", {"process": {"pid": 1}}, "unimplemented"),
    ],
)
def test_a_wrong_call_is_refused(
    lab: Lab, call: str, message: dict[str, object], code: str
) -> None:
    """By its code and by the status that belongs to it."""
    status, body = lab.start().rpc(f"{PROCESS}/{call}", **message)

    assert body["code"] == code
    assert status == {"invalid_argument": 400, "unimplemented": 501}[code]


def test_a_time_limit_kills_where_it_is_enforced(lab: Lab) -> None:
    """The whole group, even when the caller has left."""
    sandbox = lab.start(command_deadline="enforce")
    limit = {"Connect-Timeout-Ms": "300"}
    left = sandbox.sh("sleep 60 & wait", headers=limit)
    left.event()
    left.close()
    stream = sandbox.sh("sleep 60 & wait", headers=limit)
    stream.event()

    assert stream.rest()["end"] is None
    assert stream.error is not None
    assert stream.error["code"] == "deadline_exceeded"
    wait_until(lambda: not sandbox.pids())
    assert sandbox.sh("echo in time", headers=limit).output() == "in time\n"


def test_a_time_limit_of_who_connects_ends_but_the_stream(lab: Lab) -> None:
    """Where it is enforced; the program is not that caller's."""
    sandbox = lab.start(command_deadline="enforce")
    first = sandbox.start("sleep", "60")
    pid = pid_of(first)
    second = sandbox.follow(pid, headers={"Connect-Timeout-Ms": "50"})

    assert second.rest()["end"] is None
    assert second.error is not None
    assert second.error["code"] == "deadline_exceeded"
    assert [each["pid"] for each in listed(sandbox)] == [pid]
    first.close()


def test_a_time_limit_is_but_a_note_otherwise(lab: Lab) -> None:
    """SDKs send one for servers, too; what is no number is refused all the same."""
    sandbox = lab.start()
    limit = {"Connect-Timeout-Ms": "50"}
    stream = sandbox.start("sleep", "60", headers=limit)
    pid = pid_of(stream)
    follower = sandbox.follow(pid, headers=limit)
    log = sandbox.spec.root / "logs" / "agent.log"
    wait_until(log.exists)
    wait_until(lambda: f"process {pid} is past the 0.05 s" in log.read_text())

    assert [each["pid"] for each in listed(sandbox)] == [pid]
    assert follower.event() == {"start": {"pid": pid}}
    follower.close()
    stream.close()
    refused = sandbox.start("true", headers={"Connect-Timeout-Ms": "soon"})

    assert list(refused) == []
    assert refused.error is not None
    assert refused.error["code"] == "invalid_argument"
