"""Behind nginx, configured as the page on deployment says."""

from __future__ import annotations

import getpass
import json
import socket
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from attrs import frozen

from ppio_agent.serving import PPIOAgentRuntimeServer
from tests.serving.hosts import Caller, documented, hosting
from tests.serving.shapes import build
from tests.serving.support import JSON, SSE, hang_up
from tests.support import SLOW, needs_program, wait_until
from tests.support_net import free_port

FRAME = """
user {user};
pid {folder}/nginx.pid;
error_log stderr notice;
events {{}}
http {{
access_log off;
client_body_temp_path {folder}/body;
proxy_temp_path {folder}/proxy;
fastcgi_temp_path {folder}/fastcgi;
uwsgi_temp_path {folder}/uwsgi;
scgi_temp_path {folder}/scgi;
{config}
}}
"""


CUT = """
    location /agent/ {
        proxy_pass http://agent/;
        proxy_set_header Host $host;
        proxy_redirect / /agent/;
    }
"""


@frozen
class Site:
    http: Caller  # through nginx
    direct: Caller
    server: PPIOAgentRuntimeServer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """An app on our own server, and an nginx in front."""
    program = needs_program("nginx")
    folder = tmp_path_factory.mktemp("nginx")
    port = free_port()
    app = build(heartbeat=0.2, max_concurrency=8)
    with app.server(port=0) as server:
        config = documented("# An agent behind nginx.")
        for old, new in (
            ("listen 127.0.0.1:80;", f"listen 127.0.0.1:{port};"),
            ("127.0.0.1:8080", f"127.0.0.1:{server.port}"),
        ):
            assert config.count(old) == 1
            config = config.replace(old, new)
        assert config.count("    location / {") == 1
        config = config.replace("    location / {", CUT + "    location / {")
        (folder / "nginx.conf").write_text(
            FRAME.format(folder=folder, config=config, user=getpass.getuser())
        )
        command = [program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
        command += ["-e", "stderr", "-g", "daemon off;"]
        with hosting(command, folder, says=r"start worker process (\d+)") as host:
            through = type(host)(host.process, port, host.log)
            yield Site(through.http, Caller(server), server)


def test_calls_pass_with_their_ids(site: Site) -> None:
    """The envelope, the ids, and the name by which the client called."""
    answer = site.http.invoke({}, X_Request_Id="r-1", Host="agent.example.com")
    assert (answer.status, answer.json["status"]) == (200, "success")
    assert answer.headers["x-request-id"] == "r-1"
    assert answer.headers["x-ppio-agent"]
    promised = site.http.invoke({}, Prefer="respond-async")
    assert promised.headers["location"].startswith("/invocations/")


def test_a_stream_is_not_held_back(site: Site) -> None:
    """Each event comes when it was yielded, heartbeats between them."""
    body = b'{"stream": true, "seconds": 0.9}'
    connection, response = site.http.open("POST", "/invocations", body, SSE)
    came = [(time.monotonic(), line) for line in iter(response.readline, b"")]
    connection.close()
    at = {line: instant for instant, line in came}
    assert at[b'data: "b"\n'] - at[b'data: "a"\n'] > 0.7
    assert [line for _, line in came].count(b": hb\n") >= 2
    assert b"event: end\n" in at


def test_a_client_that_leaves_nginx_cancels_the_invocation(site: Site) -> None:
    """Nginx closes its own connection then, which the server looks for."""
    for headers in (SSE, JSON):
        invocation_id = f"leaver-{len(headers)}-{headers is SSE}"
        payload: dict[str, Any] = {"stream": headers is SSE, "seconds": 30}
        began = _leave(site, payload, {**headers}, invocation_id)
        place = f"/invocations/{began}"
        wait_until(lambda place=place: _state(site, place) == "cancelled")
        assert site.direct.get(place).json["cancel"]["reason"] == "disconnect"


def _leave(
    site: Site, payload: dict[str, Any], headers: dict[str, str], name: str
) -> str:
    """Call, leave before the end, and return the invocation's id."""
    body = json.dumps(payload).encode()
    if payload["stream"]:
        connection, response = site.http.open("POST", "/invocations", body, headers)
        assert response.readline() == b": open\n"
        hang_up(connection)
        response.close()
        return str(response.headers["X-Invocation-Id"])
    own = {**headers, "X-API-Key": "sk-tests-only", "X-Invocation-Id": name}
    lines = [f"{key}: {value}" for key, value in own.items()]
    head = f"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", site.http.port)) as client:
        client.sendall((head + "\r\n".join(lines) + "\r\n\r\n").encode() + body)
        wait_until(lambda: _state(site, f"/invocations/{name}") == "running")
    return name


def _state(site: Site, place: str) -> Any:
    return site.direct.get(place).json.get("state")


def test_a_proxy_that_cuts_a_path_off_can_put_it_back(site: Site) -> None:
    """By `proxy_redirect`, which the page names, in the places that a client follows."""
    promised = site.http.invoke({}, "/agent/invocations", Prefer="respond-async")
    place = urlsplit(promised.headers["location"]).path  # nginx adds the host
    assert place.startswith("/agent/invocations/")
    assert site.http.get(place).json["id"] == promised.json["id"]


def test_connections_to_the_agent_are_kept(site: Site) -> None:
    """One after the other, all requests go over the same few."""
    before = site.server._server.stats()["connections"]
    for _ in range(20):
        assert site.http.get("/ping").status == 200
    assert site.server._server.stats()["connections"] <= before + 2


def test_the_largest_body_passes_and_a_larger_does_not(site: Site) -> None:
    """Nginx refuses at the same size as the app would."""
    largest = b'{"a":"' + b"x" * (1_048_576 - 8) + b'"}'
    assert site.http.request("POST", "/invocations", largest, JSON).status == 200
    larger = {**JSON, "Content-Length": str(len(largest) + 1)}
    connection, response = site.http.open("POST", "/invocations", b"", larger)
    assert response.status == 413
    connection.close()


def test_what_a_client_says_of_its_way_is_believed_nowhere(site: Site) -> None:
    """Neither host nor scheme nor address come from headers that anybody may send."""
    claims = {"X_Forwarded_Host": "evil.example", "X_Forwarded_Proto": "gopher"}
    page = site.http.get("/", Host="agent.example.com", **claims)
    assert page.status == 200
    assert b"evil" not in page.body
    assert b"gopher" not in page.body


def test_a_refusal_comes_at_once(site: Site) -> None:
    """A deadline of the request holds behind nginx, too."""
    began = time.monotonic()
    answer = site.http.invoke({"seconds": 5}, X_PPIO_Timeout="0.2")
    assert answer.status == 504
    assert time.monotonic() - began < 2 * SLOW
