"""`/files` of a real sandbox: sent and taken as it comes, bounded, and not lost."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ppio_agent.sandbox.backends.base import ENVD_PORT
from ppio_agent.sandbox.supervisor.envd import upload
from ppio_agent.sandbox.supervisor.envd.budget import Budget
from ppio_agent.sandbox.supervisor.envd.files import Files
from ppio_agent.sandbox.supervisor.envd.http import Connection
from ppio_agent.sandbox.supervisor.envd.roots import Roots
from ppio_agent.sandbox.supervisor.envd.signatures import sign
from ppio_agent.sandbox.supervisor.envd.upload import MAX_UPLOAD
from ppio_agent.sandbox.supervisor.loop import READ, Loop
from tests.sandbox.sandboxkit import Lab, Sandbox
from tests.support import SLOW, wait_until

RAW = {"Content-Type": "application/octet-stream"}


def connection(sandbox: Sandbox) -> http.client.HTTPConnection:
    """Return a connection that stays, as those of SDKs do."""
    found = http.client.HTTPConnection("sandbox")
    found.sock = sandbox.running.dial(ENVD_PORT, 5.0)
    found.sock.settimeout(60 * SLOW)
    return found


def test_a_file_comes_back_as_it_was_sent(lab: Lab) -> None:
    """By a body of known length and in chunks; read whole and in part."""
    sandbox = lab.start()
    data = os.urandom(300_000)
    client = connection(sandbox)
    for body in (data, (data[at : at + 70_000] for at in range(0, 300_000, 70_000))):
        client.request("POST", "/files?path=a%20b/f", body, RAW)
        answer = client.getresponse()
        assert json.loads(answer.read()) == [
            {"path": "/home/user/a b/f", "name": "f", "type": "file"}
        ]
        client.request("GET", "/files?path=a+b/f&username=user")
        answer = client.getresponse()
        assert answer.headers["content-length"] == "300000"
        assert answer.headers["content-disposition"].endswith("UTF-8''f")
        assert answer.read() == data

    client.request("GET", "/files?path=a%20b/f", headers={"Range": "bytes=-5"})
    answer = client.getresponse()
    assert (answer.status, answer.read()) == (206, data[-5:])
    assert answer.headers["content-range"] == "bytes 299995-299999/300000"
    client.request("GET", "/files?path=a%20b/f", headers={"Range": "bytes=300000-"})
    answer = client.getresponse()
    answer.read()
    assert answer.status == 416
    assert answer.headers["content-range"] == "bytes */300000"
    client.close()


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("missing", 404, "not_found"),
        ("", 400, "invalid_argument"),
        ("pipe", 400, "invalid_argument"),
        ("/etc/passwd", 403, "permission_denied"),
        ("../../x", 403, "permission_denied"),
        ("out", 403, "permission_denied"),
        ("%ff", 400, "invalid_argument"),
    ],
)
def test_what_is_no_file_of_the_sandbox_is_not_sent(
    lab: Lab, path: str, status: int, code: str
) -> None:
    """A pipe does not make anybody wait."""
    sandbox = lab.start()
    home = sandbox.spec.root / "home"
    os.mkfifo(home / "pipe")
    (home / "out").symlink_to("/etc/passwd")
    found, body = sandbox.envd(f"/files?path={path}")

    assert (found, json.loads(body)["code"]) == (status, code)
    if path.startswith(("/", ".", "o")):
        found, body = sandbox.envd(
            f"/files?path={path}", method="POST", body=b"x", headers=RAW
        )
        assert (found, json.loads(body)["code"]) == (status, code)


def test_a_large_file_costs_no_memory_either_way(lab: Lab) -> None:
    """And others are served meanwhile; a client is as fast as the disk."""
    sandbox = lab.start()
    size, piece = 96 * 1024 * 1024, bytes(1024 * 1024)
    assert sandbox.envd("/health")[0] == 204
    process = psutil.Process(sandbox.running.pid)
    before = process.memory_info().rss

    def pieces() -> Iterator[bytes]:
        for number in range(size // len(piece)):
            if number % 32 == 1:
                assert sandbox.envd("/health")[0] == 204
                assert process.memory_info().rss < before + 16 * 1024 * 1024
            yield piece

    client = connection(sandbox)
    client.request("POST", "/files?path=f", pieces(), RAW)
    assert client.getresponse().read().startswith(b"[")
    client.request("GET", "/files?path=f")
    answer = client.getresponse()
    sandbox.start("true").rest()  # it does not wait for a client that does not read
    assert process.memory_info().rss < before + 16 * 1024 * 1024
    left = size
    while data := answer.read(len(piece)):
        left -= len(data)

    assert left == 0
    client.close()


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(lab: Lab) -> None:
    """With 413; what is sent all the same is dropped, and the connection goes on."""
    sandbox = lab.start()
    with sandbox.running.dial(ENVD_PORT, 5.0) as sock:
        sock.settimeout(10 * SLOW)
        sock.sendall(
            b"POST /files?path=f HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
            b"Content-Type: application/octet-stream\r\n\r\n" % (2 * MAX_UPLOAD)
        )
        assert sock.recv(12) == b"HTTP/1.1 413"
    client = connection(sandbox)
    client.request("POST", "/files?path=/etc/x", bytes(8_000_000), RAW)
    answer = client.getresponse()
    assert (answer.status, json.loads(answer.read())["code"]) == (
        403,
        "permission_denied",
    )
    client.request("GET", "/health")
    assert client.getresponse().status == 204
    client.close()


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.ENOSPC, 507), (errno.EDQUOT, 507), (errno.EFBIG, 413), (errno.EIO, 500)],
)
def test_a_disk_that_takes_no_more_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, status: int
) -> None:
    """By a status of its own, and nothing of the file is left."""

    def full(*_: object) -> int:
        raise OSError(number, "No More")

    monkeypatch.setattr(upload.os, "write", full)
    roots = Roots.of(home=str(tmp_path), app="/a", tmp="/t", confined=True)
    loop = Loop()
    files = Files(loop, roots)
    ours, theirs = socket.socketpair()
    connection = Connection(
        loop,
        theirs,
        lambda request, made: files.post(request, {"path": "f"}, made),
        Budget(),
    )
    with ours:
        ours.sendall(
            b"POST /files HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n"
            b"Content-Type: application/octet-stream\r\n\r\nx"
        )
        loop.watch(ours.fileno(), READ, lambda _: loop.stop())
        loop.run()
        answer = ours.recv(10_000)
        connection.close()

    assert answer.startswith(b"HTTP/1.1 %d" % status)
    assert b"f: no more" in answer
    assert os.listdir(tmp_path) == []


def test_a_client_that_leaves_leaves_nothing_behind(lab: Lab) -> None:
    """Neither a file that is not whole, nor an open one."""
    sandbox = lab.start()
    home = sandbox.spec.root / "home"
    (home / "old").write_bytes(bytes(5_000_000))
    handles = f"/proc/{sandbox.running.pid}/fd"
    assert sandbox.envd("/health")[0] == 204
    files = sorted(os.listdir(home))

    with sandbox.running.dial(ENVD_PORT, 5.0) as sock:
        sock.sendall(
            b"POST /files?path=old HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n"
            b"Content-Type: application/octet-stream\r\n\r\nhalf"
        )
        wait_until(lambda: len(os.listdir(home)) == len(files) + 1)
    wait_until(lambda: sorted(os.listdir(home)) == files)
    with sandbox.running.dial(ENVD_PORT, 5.0) as sock:
        sock.sendall(b"GET /files?path=old HTTP/1.1\r\nHost: x\r\n\r\n")
        sock.recv(1000, socket.MSG_WAITALL)
    wait_until(lambda: not in_home(handles))
    assert (home / "old").stat().st_size == 5_000_000


def test_a_body_that_breaks_off_in_itself_leaves_nothing_behind(lab: Lab) -> None:
    """It is refused, and what came of it is gone."""
    sandbox = lab.start()
    home = sandbox.spec.root / "home"
    files = sorted(os.listdir(home))
    with sandbox.running.dial(ENVD_PORT, 5.0) as sock:
        sock.settimeout(10 * SLOW)
        sock.sendall(
            b"POST /files?path=f HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n"
            b"Content-Type: application/octet-stream\r\n\r\n3\r\none\r\n"
        )
        wait_until(lambda: len(os.listdir(home)) == len(files) + 1)
        sock.sendall(b"no size\r\n")
        assert sock.recv(12) == b"HTTP/1.1 400"
    assert sorted(os.listdir(home)) == files
    assert in_home(f"/proc/{sandbox.running.pid}/fd") == []


def in_home(handles: str) -> list[str]:
    """Return the files below the home folder that a process has open."""
    found = []
    for fd in os.listdir(handles):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"{handles}/{fd}"))
    return [path for path in found if "/home" in path]


def test_a_signed_url_needs_no_token(lab: Lab) -> None:
    """For its file, its operation and its time alone."""
    sandbox = lab.start(access_token="right")
    wrong = "unauthorized access, please provide a valid access token"
    (sandbox.spec.root / "home" / "f").write_text("found")

    def signed(operation: str, until: int | None = None) -> str:
        proof = sign("f", operation, "", "right", until)  # type: ignore[arg-type]
        rest = "" if until is None else f"&signature_expiration={until}"
        return f"/files?path=f&signature={proof.replace('+', '%2B')}{rest}"

    def refused(path: str, method: str = "GET") -> str:
        status, body = sandbox.envd(path, method=method)
        answer = json.loads(body)
        assert (status, answer["code"]) == (401, 401)
        message: str = answer["message"]
        return message

    assert sandbox.envd(signed("read")) == (200, b"found")
    assert sandbox.envd(signed("read", 2**33)) == (200, b"found")
    assert (
        sandbox.envd(signed("write"), method="POST", body=b"written", headers=RAW)[0]
        == 200
    )
    token = {"X-Access-Token": "right"}
    assert sandbox.envd("/files?path=f&signature=x", headers=token)[1] == b"written"
    assert refused(signed("read", 1)) == "signature is already expired"
    assert refused(signed("read"), "POST") == "invalid signature"
    assert refused(signed("read").replace("path=f", "path=g")) == "invalid signature"
    assert refused("/files?path=f").startswith(wrong)
    assert refused(signed("read").replace("/files", "/envs")).startswith(wrong)
