"""Every request that the client makes, against what client.md and platform.md say.

One table, a row for each request: method, path, query, the names of all headers, the
keys of the body. One table for the values of headers. Both are written down from the
documents, not from the code: client.md 3.1, 3.2, 3.5, 3.6, platform.md 3 and 9. They
are checked for each style of ids and addresses, and each way to prove who asks; a row
that fails says which cell differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from attrs import frozen

from ppio_agent.client import AgentRuntimeClient, ClientConfig
from ppio_agent.wire.connect import STREAM_CONTENT_TYPE, FrameReader
from ppio_agent.wire.signing import Signature
from tests.support_net import certificate
from tests.support_platform import (
    KEY,
    Exchange,
    FakePlatform,
    Recorded,
    echo_agent,
    patient_envd,
)

SECRET = "sk_never_on_the_wire"
KEY_ID = "team-a"
TRAFFIC = "traffic-token-of-this-sandbox"
ENVD = "envd-token-of-this-sandbox"
CLOUD = "sandbox.ppio.cn"
OTHER = "plain.example"
SESSION = "conversation-1"


@frozen
class Style:
    """How ids are written and ports are reached.

    Attributes:
        ref: What paths, hosts and headers call the first sandbox.
        domain: Of host names; None routes by header.
        composite: Whether it is the cloud, which wants some keys of its own.
    """

    ref: str
    domain: str | None
    composite: bool = False


STYLES = {
    "composite": Style("sb1-local", CLOUD, composite=True),
    "plain": Style("sb1", OTHER),
    "by header": Style("sb1", None),
}

Json = Mapping[str, Any]


@frozen(kw_only=True)
class Row:
    """What one kind of request looks like.

    Attributes:
        plane: Where it goes: `templates`, `sandboxes`, `envd` or `agent`.
        method: Its method.
        path: Its path; `{ref}` stands for the sandbox.
        query: Its parameters.
        headers: Names of its own headers; those of its plane and of all come on top.
        body: Its value, where `...` stands for what the caller or chance decides;
            None means no body.
        cloud_body: The same for composite ids, if that differs.
    """

    plane: str
    method: str
    path: str
    query: Json = MappingProxyType({})
    headers: frozenset[str] = frozenset()
    body: Json | None = None
    cloud_body: Json | None = None


NEW_SANDBOX = {
    "templateID": "tpl1",
    "timeout": 600,
    "metadata": ...,
    "envVars": {"LEVEL": "1"},
    "secure": True,
    "autoPause": True,
}
START = {
    "process": {
        "cmd": "/bin/bash",
        "args": ["-l", "-c", "cd /app && sudo -E python app.py"],
    },
    "stdin": False,
}
INVOCATION = frozenset({
    "accept", "content-type", "idempotency-key", "x-invocation-id", "x-ppio-session-id",
})  # fmt: skip

TABLE = {
    "list templates": Row(
        plane="templates", method="GET", path="/templates", query={"metadata": "true"}
    ),
    "create": Row(
        plane="sandboxes",
        method="POST",
        path="/sandboxes",
        headers=frozenset({"content-type", "idempotency-key"}),
        body={**NEW_SANDBOX, "allow_internet_access": False},
        cloud_body={**NEW_SANDBOX, "allowInternetAccess": False},
    ),
    "list sandboxes": Row(
        plane="sandboxes", method="GET", path="/v2/sandboxes", query={"metadata": ...}
    ),
    "get": Row(plane="sandboxes", method="GET", path="/sandboxes/{ref}"),
    "pause": Row(
        plane="sandboxes",
        method="POST",
        path="/sandboxes/{ref}/pause",
        cloud_body={"sync": False},
    ),
    "connect": Row(
        plane="sandboxes",
        method="POST",
        path="/sandboxes/{ref}/connect",
        headers=frozenset({"content-type"}),
        body={"timeout": 600},
        cloud_body={"timeout": 600, "autoPause": True},
    ),
    "resume": Row(
        plane="sandboxes",
        method="POST",
        path="/sandboxes/{ref}/resume",
        headers=frozenset({"content-type"}),
        body={"timeout": 600, "autoPause": True},
    ),
    "timeout": Row(
        plane="sandboxes",
        method="POST",
        path="/sandboxes/{ref}/timeout",
        headers=frozenset({"content-type"}),
        body={"timeout": 900},
    ),
    "kill": Row(plane="sandboxes", method="DELETE", path="/sandboxes/{ref}"),
    "start": Row(
        plane="envd",
        method="POST",
        path="/process.Process/Start",
        headers=frozenset({
            "content-type", "connect-protocol-version", "keepalive-ping-interval",
        }),
        body=START,
    ),
    "ping": Row(plane="agent", method="GET", path="/ping"),
    "invoke": Row(
        plane="agent",
        method="POST",
        path="/invocations",
        headers=INVOCATION | {"x-ppio-timeout"},
        body={"prompt": "whole"},
    ),
    "stream": Row(
        plane="agent",
        method="POST",
        path="/invocations",
        headers=INVOCATION,  # it has no total, so it tells none
        body={"prompt": "stream"},
    ),
    "events": Row(
        plane="agent",
        method="GET",
        path="/invocations/inv-7/events",
        headers=frozenset({"accept", "last-event-id"}),
    ),
    "cancel": Row(plane="agent", method="POST", path="/invocations/inv-7/cancel"),
}  # fmt: skip

OF_ALL = {"host", "user-agent", "accept-encoding", "x-request-id"}
PROOF = {
    "templates": {"authorization"},
    "sandboxes": {"x-api-key"},
    "envd": {"x-access-token"},
    "agent": {"e2b-traffic-access-token"},
}
SIGNATURE = {"x-ppio-key", "x-ppio-timestamp", "x-ppio-nonce", "x-ppio-signature"}
ROUTING = {
    "ppio-sandbox-id", "ppio-sandbox-port", "e2b-sandbox-id", "e2b-sandbox-port",
}  # fmt: skip
PORTS = {"envd": "49983", "agent": "8080"}


def expected_headers(row: Row, style: Style, *, signed: bool) -> set[str]:
    """Return the names of all headers of a request."""
    names = OF_ALL | PROOF[row.plane] | row.headers
    if row.method == "POST":
        names |= {"content-length"}
    if style.composite and row.cloud_body is not None:
        names |= {"content-type"}
    if signed and row.plane != "envd":
        names |= SIGNATURE
    if row.plane in PORTS and style.domain is None:
        names |= ROUTING
    if row.plane == "envd":
        names |= {"ppio-sandbox-id", "ppio-sandbox-port"}  # by host name, too
    return names


def expected_values(row: Row, style: Style, origin: str) -> dict[str, str]:
    """Return what headers hold, as patterns, by their names."""
    host = urlsplit(origin).netloc
    if style.domain is not None:
        label = f"{PORTS[row.plane]}-{style.ref}" if row.plane in PORTS else "api"
        host = f"{label}.{style.domain}"
    kinds = {"envd": STREAM_CONTENT_TYPE}
    accept = "application/json, text/event-stream;q=0.9"
    if row.body != {"prompt": "whole"}:
        accept = "text/event-stream"
    exact = {
        "host": host,
        "accept-encoding": "gzip, deflate",
        "accept": accept,
        "content-type": kinds.get(row.plane, "application/json"),
        "x-api-key": KEY,
        "authorization": f"Bearer {KEY}",
        "x-access-token": ENVD,
        "e2b-traffic-access-token": TRAFFIC,
        "ppio-sandbox-id": style.ref,
        "e2b-sandbox-id": style.ref,
        "ppio-sandbox-port": PORTS.get(row.plane, ""),
        "e2b-sandbox-port": PORTS.get(row.plane, ""),
        "connect-protocol-version": "1",
        "keepalive-ping-interval": "50",
        "x-ppio-session-id": SESSION,
        "x-ppio-key": KEY_ID,
        "last-event-id": "1",
    }
    return {
        **{name: re.escape(value) for name, value in exact.items()},
        "user-agent": r"ppio-agent/\S+ python/3\.\S+",
        "x-request-id": "[0-9a-f]{32}",
        "idempotency-key": r"[\x21-\x7e]{1,255}",
        "x-invocation-id": "[A-Za-z0-9._:-]{1,128}",
        "x-ppio-timeout": r"\d+\.\d+",
        "x-ppio-timestamp": r"\d{10}",
        "x-ppio-nonce": "[A-Za-z0-9_-]{16,128}",
        "x-ppio-signature": "v1=[0-9a-f]{64}",
        "content-length": r"\d+",
    }


def differences(
    row: Row, request: Recorded, style: Style, origin: str, *, signed: bool
) -> Iterator[str]:
    """Yield what differs in a request from its row, a line a cell."""
    names = expected_headers(row, style, signed=signed)
    if missing := names - request.headers.keys():
        yield f"headers that are missing: {sorted(missing)}"
    if surplus := request.headers.keys() - names:
        yield f"headers that should not be there: {sorted(surplus)}"
    patterns = expected_values(row, style, origin)
    for name, value in request.headers.items():
        if name in names and not re.fullmatch(patterns[name], value):
            yield f"header {name}: {value!r} is not {patterns[name]}"
    query = dict(parse_qsl(urlsplit(request.path).query))
    yield from _different("query", row.query, query)
    wanted = row.cloud_body if style.composite and row.cloud_body else row.body
    sent = _message(row, request.body)
    if wanted is None and request.body:
        yield f"body: {request.body!r} where there should be none"
    elif wanted is not None:
        yield from _different("body", wanted, sent)
    if signed and row.plane != "envd" and not _proves(request):
        yield "signature: it does not prove what was sent"
    if row.plane in PORTS and KEY in f"{request.headers}{request.body!r}":
        yield "the platform's key reached a port of the sandbox"


def _different(cell: str, wanted: Json, found: Json) -> Iterator[str]:
    if wanted.keys() != found.keys():
        yield f"{cell} keys: {sorted(found)}, not {sorted(wanted)}"
    for name in wanted.keys() & found.keys():
        if wanted[name] is not ... and wanted[name] != found[name]:
            yield f"{cell} {name}: {found[name]!r}, not {wanted[name]!r}"


def _message(row: Row, body: bytes) -> Json:
    if row.plane == "envd":
        (frame,) = FrameReader().feed(body)
        body = frame.payload
    found: Json = json.loads(body) if body else {}
    return found


def _proves(request: Recorded) -> bool:
    signature = Signature.read(request.headers)
    digest = hashlib.sha256(request.body).hexdigest()
    return signature is not None and signature.proves(
        request.method, request.path, digest, secrets=[SECRET]
    )


def row_of(request: Recorded, style: Style) -> str | None:
    """Return the name of the row that a request belongs to."""
    path = urlsplit(request.path).path
    for name, row in TABLE.items():
        meant = row.path.replace("{ref}", style.ref)
        if (row.method, meant) != (request.method, path):
            continue
        if path != "/invocations" or request.json() == row.body:
            return name
    return None


def _agent(exchange: Exchange) -> None:
    """Answer whole, or as a stream that is cut once, and let runs be cancelled."""
    request = exchange.request
    path = urlsplit(request.path).path
    if path.endswith("/cancel"):
        exchange.reply(200, {"confirmed": True, "state": "cancelled"})
    elif path.endswith("/events"):
        exchange.start_stream(invocation_id="inv-7")
        exchange.send(b'id: 2\ndata: "two"\n\n')
        exchange.await_client_gone()
    elif path == "/invocations" and request.json() == {"prompt": "stream"}:
        exchange.start_stream(invocation_id="inv-7")
        exchange.send(b'id: 1\ndata: "one"\n\n')
        exchange.cut()
    else:
        echo_agent(exchange)


def _use_all(client: AgentRuntimeClient, platform: FakePlatform) -> None:
    """Make every call that there is."""
    started, lost = threading.Event(), list[Exchange]()

    def envd(exchange: Exchange) -> None:
        started.set()
        patient_envd(exchange)

    def ping(exchange: Exchange) -> None:
        if not started.is_set():
            exchange.reply(503, {"message": "nobody listens"})

    def lose_answer(exchange: Exchange) -> None:
        if not lost:
            platform.create_unanswered(exchange)
        elif len(lost) == 1:
            exchange.cut()  # a kept connection may be closed, so it is sent twice
        lost.append(exchange)

    platform.envd = envd
    platform.on("GET", "/ping", ping)
    platform.on("POST", "/sandboxes$", lose_answer)
    session = client.create_session(
        "tpl1",
        600,
        env_vars={"LEVEL": "1"},
        allow_internet=False,
        auto_pause=True,
        session_id=SESSION,
    )
    session.invoke("whole")
    stream = session.invoke_stream("stream")
    assert [next(stream), next(stream)] == ["one", "two"]
    assert stream.cancel().confirmed
    stream.close()
    session.get_status()
    session.pause()
    session.resume()
    session.pause()
    old = {"code": 405, "message": "no such method"}
    with platform.overriding("POST", ".*/connect", lambda e: e.reply(405, old)):
        session.resume()
    session.refresh(900)
    assert client.close_session("sb1")  # in either style


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    made = certificate(tmp_path_factory.mktemp("tls"), f"*.{CLOUD}", f"*.{OTHER}")
    if made is None:
        pytest.skip("openssl is not installed; .ci/packages installs it")
    return made


@contextlib.contextmanager
def _recording(
    style: Style, tls: tuple[ssl.SSLContext, Path], secret: str | None
) -> Iterator[tuple[FakePlatform, AgentRuntimeClient]]:
    context, bundle = tls
    with FakePlatform(_agent, domain=style.domain, tls=context) as platform:
        platform.traffic_token = TRAFFIC
        where: dict[str, Any] = {"base_url": platform.url}
        if style.domain is not None:
            where = {
                "domain": style.domain,
                "proxy": platform.url.replace("//", "//me:hunter2@"),
                "ca_bundle": str(bundle),
            }
        config = ClientConfig(max_retries=1, key_id=KEY_ID, **where)
        with AgentRuntimeClient(KEY, secret, config=config) as client:
            yield platform, client


@pytest.mark.parametrize("style", STYLES.values(), ids=list(STYLES))
@pytest.mark.parametrize("signed", [False, True], ids=["bearer", "hmac"])
def test_every_request_is_as_it_is_written(
    style: Style, tls: tuple[ssl.SSLContext, Path], *, signed: bool
) -> None:
    """Each cell of each row, and no request that is in no row."""
    with _recording(style, tls, SECRET if signed else None) as (platform, client):
        _use_all(client, platform)
    seen = [(row_of(request, style), request) for request in platform.requests]

    unknown = [f"{r.method} {r.path}" for name, r in seen if name is None]
    wrong = [
        f"{name}: {line}"
        for name, request in seen
        if name is not None
        for line in differences(
            TABLE[name], request, style, platform.url, signed=signed
        )
    ]
    assert unknown == []
    assert wrong == []
    assert {name for name, _ in seen} == TABLE.keys()
    assert SECRET not in str([(r.headers, r.body) for _, r in seen])


def test_a_proxy_learns_no_key(tls: tuple[ssl.SSLContext, Path]) -> None:
    """It is told where to connect to, and what it wants itself; the rest is inside."""
    with _recording(STYLES["composite"], tls, SECRET) as (platform, client):
        client.list_templates()
        client.create_session("tpl1").close()

    assert platform.tunnels
    for headers in platform.tunnels:
        assert {name.lower() for name in headers} <= {"host", "proxy-authorization"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: {**r, "path": "/templates"}, "query keys"),
        (lambda r: {**r, "headers": {**r["headers"], "x-more": "1"}}, "x-more"),
        (lambda r: {**r, "headers": {"host": "h"}}, "missing"),
        (lambda r: {**r, "body": b"{}"}, "body"),
    ],
)
def test_a_row_that_fails_says_which_cell(
    change: Callable[[dict[str, Any]], dict[str, Any]], told: str
) -> None:
    """The table itself is tried: a request that is wrong in one cell is found out."""
    row, style = TABLE["list templates"], STYLES["by header"]
    patterns = {
        "host": "h", "user-agent": "ppio-agent/1 python/3.11", "x-request-id": "a" * 32,
        "accept-encoding": "gzip, deflate", "authorization": f"Bearer {KEY}",
    }  # fmt: skip
    right: dict[str, Any] = {
        "method": "GET", "path": "/templates?metadata=true", "headers": patterns,
        "body": b"", "port": None,
    }  # fmt: skip

    def lines(values: dict[str, Any]) -> list[str]:
        request = Recorded(**values)
        return list(differences(row, request, style, "http://h", signed=False))

    assert lines(right) == []
    assert any(told in line for line in lines(change(right)))
