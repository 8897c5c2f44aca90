"""The edge of a whole platform, with agents that are real processes behind it."""

from __future__ import annotations

import os
import socket
import struct
import threading

import pytest

from tests.sandbox.cloud import Cloud
from tests.sandbox.edge.edgekit import Client
from tests.support import SLOW, wait_until

# Speaks on sockets: an echo by WebSocket (RFC 6455), and an upload that is told of
# as soon as it begins.
SOCKET_AGENT = """\
import base64, hashlib, os, socketserver, threading

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
BEGUN = threading.Event()

class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        headers = {}
        while (field := self.rfile.readline().strip()):
            name, _, value = field.partition(b":")
            headers[name.lower()] = value.strip()
        path = line.split()[1]
        if path == b"/socket":
            accept = hashlib.sha1(headers[b"sec-websocket-key"] + GUID).digest()
            self.wfile.write(
                b"HTTP/1.1 101 Switching Protocols\\r\\nUpgrade: websocket\\r\\n"
                b"Connection: Upgrade\\r\\nSec-WebSocket-Accept: "
                + base64.b64encode(accept)
                + b"\\r\\n\\r\\n\\x81\\x05hello"
            )
            while self.echo():
                pass
        elif path == b"/upload":
            got = self.rfile.read(1)
            BEGUN.set()
            self.answer(got + self.rfile.read(int(headers[b"content-length"]) - 1))
        else:
            self.answer(b"begun" if BEGUN.wait(20) else b"nothing came")

    def echo(self):
        first, second = self.rfile.read(2)
        size = second & 127
        if size == 126:
            size = int.from_bytes(self.rfile.read(2), "big")
        mask = self.rfile.read(4)
        data = self.rfile.read(size)
        data = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))
        length = bytes([size]) if size < 126 else b"~" + size.to_bytes(2, "big")
        self.wfile.write(bytes([first]) + length + data)
        return first & 15 != 8

    def answer(self, body):
        head = b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d"
        self.wfile.write(head % len(body) + b"\\r\\n\\r\\n" + body)

socketserver.ThreadingTCPServer.daemon_threads = True
address = (os.environ["HOST"], int(os.environ["PORT"]))
socketserver.ThreadingTCPServer(address, Handler).serve_forever()
"""


def _client(cloud: Cloud) -> Client:
    return Client(int(cloud.platform.url.rpartition(":")[2]))


def _host(sandbox_id: str, port: int = 8080) -> bytes:
    return f"Host: {port}-{sandbox_id}.sandbox.test\r\n".encode()


def _upgrade(sandbox_id: str) -> bytes:
    """Return the request for a WebSocket; its key is the example of RFC 6455, 1.3."""
    return (
        b"GET /socket HTTP/1.1\r\n" + _host(sandbox_id) + b"Connection: Upgrade\r\n"
        b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )


def _frame(data: bytes, opcode: int = 1) -> bytes:
    """Return a frame as clients send it: final and masked."""
    mask = os.urandom(4)
    masked = bytes(byte ^ mask[n % 4] for n, byte in enumerate(data))
    long = struct.pack("!BH", 128 | 126, len(data))
    length = bytes([128 | len(data)]) if len(data) < 126 else long
    return bytes([128 | opcode]) + length + mask + masked


def _read_frame(client: Client) -> tuple[int, bytes]:
    first, size = client.read(2)
    if size == 126:
        size = int.from_bytes(client.read(2), "big")
    return first & 15, client.read(size)


def test_a_web_socket_reaches_the_agent(cloud: Cloud) -> None:
    """Frames that come right behind the heads included, until it is closed."""
    cloud.deploy("sockets", SOCKET_AGENT)
    sandbox_id = cloud.create("sockets")
    with _client(cloud) as client:
        client.send(_upgrade(sandbox_id) + _frame(b"early"))
        status, headers = client.head()
        assert status == 101
        assert headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        assert _read_frame(client) == (1, b"hello")
        assert _read_frame(client) == (1, b"early")
        for text in (b"one", b"x" * 60_000):
            client.send(_frame(text))
            assert _read_frame(client) == (1, text)
        client.send(_frame(b"", opcode=8))
        assert _read_frame(client) == (8, b"")
        assert client.read() == b""


@pytest.mark.slow
def test_an_open_web_socket_is_traffic(cloud: Cloud) -> None:
    """Though nothing moves in it; with its end the sandbox begins to be idle."""
    cloud.deploy("sockets", SOCKET_AGENT)
    sandbox_id = cloud.create("sockets", metadata={"idle_timeout": "1"})
    path = f"/sandboxes/{sandbox_id}"
    with _client(cloud) as client:
        assert client.send(_upgrade(sandbox_id)).head()[0] == 101
        threading.Event().wait(2.0)
        assert cloud.ask("GET", path).status_code == 200
    wait_until(lambda: cloud.ask("GET", path).status_code == 404, timeout=5 * SLOW)


def test_the_agent_gets_an_upload_as_it_is_sent(cloud: Cloud) -> None:
    """Acceptance 12: its first byte before the last."""
    cloud.deploy("sockets", SOCKET_AGENT)
    sandbox_id = cloud.create("sockets")
    head = b"POST /upload HTTP/1.1\r\n" + _host(sandbox_id)
    with _client(cloud) as client:
        client.send(head + b"Content-Length: 3\r\n\r\n").send(b"a")
        assert cloud.agent(sandbox_id, "/begun").text == "begun"
        client.send(b"bc")
        assert client.message()[2] == b"abc"


def test_a_program_outside_the_sandbox_is_not_reached(cloud: Cloud) -> None:
    """Acceptance 13: nor does it get a connection."""
    sandbox_id = cloud.create("echo")
    with socket.create_server(("127.0.0.1", 0)) as outside:
        outside.settimeout(0)
        port = outside.getsockname()[1]
        with _client(cloud) as client:
            client.send(b"GET / HTTP/1.1\r\n" + _host(sandbox_id, port) + b"\r\n")
            status, _, body = client.message()
        assert status == 502
        assert b"The sandbox is running but port is not open" in body
        with pytest.raises(BlockingIOError):
            outside.accept()


def test_a_sandbox_without_public_traffic_asks_for_its_token(cloud: Cloud) -> None:
    """Acceptance 14; and the agent does not see it."""
    closed = {"allowPublicTraffic": False}
    made = cloud.ask("POST", "/sandboxes", {"templateID": "echo", "network": closed})
    sandbox_id, token = made.json()["sandboxID"], made.json()["trafficAccessToken"]
    text = "Sandbox is secured with traffic access token. Token header"

    for given, fault in ((None, "missing"), ("wrong", "invalid")):
        headers = {"E2B-Traffic-Access-Token": given} if given else {}
        refused = cloud.agent(sandbox_id, headers=headers)
        assert (refused.status_code, refused.json()) == (
            403,
            {
                "sandboxId": sandbox_id,
                "message": f"{text} 'e2b-traffic-access-token' is {fault}",
                "code": 403,
            },
        )
    for name in ("E2B-Traffic-Access-Token", "PPIO-Traffic-Access-Token"):
        answer = cloud.agent(sandbox_id, headers={name: token})
        assert answer.status_code == 200
        assert token not in answer.text
    assert cloud.agent(sandbox_id, "/health", port=49983).status_code == 204


def test_only_who_may_use_a_sandbox_wakes_it(cloud: Cloud) -> None:
    """Its traffic token is asked for first, and envd's callers show theirs."""
    made = cloud.ask(
        "POST",
        "/sandboxes",
        {
            "templateID": "echo",
            "network": {"allowPublicTraffic": False},
            "autoResume": {"enabled": True},
        },
    ).json()
    sandbox_id = made["sandboxID"]
    path = f"/sandboxes/{sandbox_id}"

    def state() -> str:
        return str(cloud.ask("GET", path).json()["state"])

    for port, status, headers in (
        (8080, 403, {"PPIO-Traffic-Access-Token": made["trafficAccessToken"]}),
        (49983, 502, {"X-Access-Token": made["envdAccessToken"]}),
    ):
        assert cloud.ask("POST", f"{path}/pause").status_code == 204
        assert cloud.agent(sandbox_id, port=port).status_code == status
        assert state() == "paused"
        cloud.agent(sandbox_id, port=port, headers=headers)
        assert state() == "running"
