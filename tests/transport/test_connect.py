"""Connecting: names, addresses, proxies, TLS."""

from __future__ import annotations

import gc
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ppio_agent._util.clock import Deadline
from ppio_agent.exceptions import (
    ConfigurationError,
    NetworkError,
    RequestTimeoutError,
)
from ppio_agent.testing import (
    FaultServer,
    Peer,
    Received,
    chunks,
    cut,
    drip,
    reply,
    silence,
    tunnel,
)
from ppio_agent.transport import (
    NO_RETRY,
    CallHandle,
    Request,
    Transport,
    TransportConfig,
)
from ppio_agent.transport.connect import Connector
from ppio_agent.transport.route import split_url
from tests.support import new_threads, wait_until

Serve = Callable[..., FaultServer]
Tls = tuple[ssl.SSLContext, Path]


def _ask(transport: Transport, url: str, **more: object) -> bytes:
    request = Request(method="GET", url=url, retry=NO_RETRY, **more)
    return transport.send(request).body


def test_tls_is_verified_by_the_bundle(serve: Serve, tls: Tls) -> None:
    """And connections are kept."""
    context, bundle = tls
    server = serve(reply(200, b"safe"), tls=context)
    with Transport(TransportConfig(ca_bundle=str(bundle))) as transport:
        assert [_ask(transport, server.url) for _ in range(3)] == [b"safe"] * 3
        wrong = server.url.replace("localhost", "127.0.0.1")
        with pytest.raises(NetworkError, match="not trusted"):
            _ask(transport, wrong)
    assert server.connections == 2


def test_the_environment_names_a_bundle(
    serve: Serve, tls: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the configuration names none."""
    context, bundle = tls
    server = serve(reply(200, b"safe"), tls=context)
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    with Transport() as transport:
        assert _ask(transport, server.url) == b"safe"


def test_a_plain_port_is_no_tls(serve: Serve) -> None:
    """The handshake's failure is one of the network."""
    server = serve(reply())
    with Transport() as transport, pytest.raises(NetworkError, match="cannot connect"):
        _ask(transport, server.url.replace("http:", "https:"))


def test_a_silent_handshake_ends_with_the_deadline(serve: Serve) -> None:
    """It is part of connecting."""
    with socket.create_server(("127.0.0.1", 0)) as listener, Transport() as transport:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(RequestTimeoutError) as caught:
            _ask(transport, url, deadline=Deadline.after(0.2))
    assert caught.value.phase == "connect"


def test_every_address_of_a_name_is_tried(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one that takes the connection serves."""
    server = serve(reply(200, b"here"))
    look_up = socket.getaddrinfo

    def two(host: str, port: int, **how: object) -> object:
        assert host == "agent.test"
        nobody = look_up("127.0.0.1", 1, type=socket.SOCK_STREAM)
        return nobody + look_up("127.0.0.1", port, type=socket.SOCK_STREAM)

    monkeypatch.setattr(socket, "getaddrinfo", two)
    with Transport() as transport:
        assert _ask(transport, f"http://agent.test:{server.port}/") == b"here"
    assert server.requests[0].headers["host"] == f"agent.test:{server.port}"


def test_an_unknown_name_is_a_network_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the resolver's error behind it."""

    def unknown(*_where: object, **_how: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with Transport() as transport, pytest.raises(NetworkError) as caught:
        _ask(transport, "http://nowhere.test/")
    assert "name or service not known" in str(caught.value)
    assert isinstance(caught.value.__cause__, socket.gaierror)


def test_a_resolver_that_hangs_ends_with_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing can stop it, so nobody waits for it."""
    answer = threading.Event()
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_a, **_k: answer.wait(5.0) and []
    )
    request = Request(
        method="GET", url="http://slow.test/", deadline=Deadline.after(0.2)
    )
    with Transport() as transport, pytest.raises(RequestTimeoutError) as caught:
        transport.send(request)
    answer.set()
    assert caught.value.phase == "connect"


# Proxies


def test_plain_requests_name_their_target_to_the_proxy(serve: Serve) -> None:
    """In absolute form, with the proxy's own credentials."""
    proxy = serve(reply(200, b"via"))
    config = TransportConfig(proxy=f"http://user:p%40ss@127.0.0.1:{proxy.port}")
    with Transport(config) as transport:
        assert _ask(transport, "http://agent.test/a?b") == b"via"
    (got,) = proxy.requests
    assert got.target == "http://agent.test/a?b"
    assert got.headers["host"] == "agent.test"
    assert got.headers["proxy-authorization"] == "Basic dXNlcjpwQHNz"


def test_tls_goes_through_a_tunnel(serve: Serve, tls: Tls) -> None:
    """The proxy sees the host, nothing else."""
    context, bundle = tls
    server = serve(reply(200, b"safe"), tls=context)
    proxy = serve(tunnel)
    config = TransportConfig(
        proxy=f"http://u:p@127.0.0.1:{proxy.port}", ca_bundle=str(bundle)
    )
    with Transport(config) as transport:
        assert _ask(transport, server.url) == b"safe"
        assert _ask(transport, server.url) == b"safe"
    (got,) = proxy.requests
    assert (got.method, got.target) == ("CONNECT", f"localhost:{server.port}")
    assert got.headers["proxy-authorization"] == "Basic dTpw"
    assert "proxy-authorization" not in server.requests[0].headers


def test_a_proxy_may_itself_speak_tls(serve: Serve, tls: Tls) -> None:
    """Then there is TLS within TLS, for answers and for streams."""
    context, bundle = tls
    server = serve(chunks(b"one", b"two"), tls=context)
    proxy = serve(tunnel, tls=context)
    config = TransportConfig(proxy=proxy.url, ca_bundle=str(bundle))
    with Transport(config) as transport:
        assert _ask(transport, server.url) == b"onetwo"
        request = Request(method="GET", url=server.url)
        with transport.stream(request) as stream:
            assert b"".join(iter(stream.read, b"")) == b"onetwo"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (reply(407), "proxy answered 407"),
        (cut(), "proxy closed"),
        (cut(b"nonsense\r\n\r\n"), "does not speak HTTP"),
    ],
)
def test_a_proxy_that_refuses_is_a_network_error(
    serve: Serve, script: Callable[..., None], words: str
) -> None:
    """Nothing was sent to the peer."""
    proxy = serve(script)
    config = TransportConfig(proxy=f"http://127.0.0.1:{proxy.port}")
    with Transport(config) as transport, pytest.raises(NetworkError, match=words):
        _ask(transport, "https://agent.test/")


@pytest.mark.parametrize("script", [silence, drip(b"HTTP/1.1 200 OK" * 99, every=0.1)])
def test_a_slow_proxy_ends_with_the_deadline(
    serve: Serve, script: Callable[..., None]
) -> None:
    """Also if it answers byte by byte."""
    proxy = serve(script)
    config = TransportConfig(proxy=f"http://127.0.0.1:{proxy.port}")
    with Transport(config) as transport, pytest.raises(RequestTimeoutError) as caught:
        _ask(transport, "https://agent.test/", deadline=Deadline.after(0.3))
    assert caught.value.phase == "connect"


def test_the_environment_names_a_proxy_and_who_needs_none(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the rules of requests; never for this machine."""

    def name(which: str) -> FaultServer:
        return serve(reply(200, which.encode()))

    proxy, direct = name("proxy"), name("direct")
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "other.test")
    with Transport() as transport:
        assert _ask(transport, "http://agent.test/") == b"proxy"
        assert _ask(transport, direct.url) == b"direct"
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda _host, port, **_how: [
                (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))
            ],
        )
        assert _ask(transport, f"http://other.test:{direct.port}/") == b"direct"


@pytest.mark.parametrize("url", ["socks5://h:1", "http://", "http://h:x"])
def test_an_unusable_proxy_is_refused_at_once(url: str) -> None:
    """When the transport is made, without showing the URL."""
    with pytest.raises(ConfigurationError, match="proxy"):
        Transport(TransportConfig(proxy=url))


def test_netrc_is_not_read(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would replace the credentials of the caller."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    seen: list[Received] = []

    def note(peer: Peer, request: Received) -> None:
        seen.append(request)
        reply()(peer, request)

    server = serve(note)
    with Transport() as transport:
        _ask(transport, server.url)
    assert "authorization" not in seen[0].headers


def test_a_connector_that_nobody_closed_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It looked up a name, and was dropped."""

    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    threads = new_threads("ppio-transport-dns")
    connector = Connector(TransportConfig())
    with pytest.raises(socket.gaierror):
        connector.open(
            split_url("http://name.invalid/")[0], CallHandle(), Deadline.after(5.0)
        )
    assert threads()
    del connector
    gc.collect()
    wait_until(lambda: not threads())
