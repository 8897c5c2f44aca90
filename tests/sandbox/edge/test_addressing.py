"""Where a request goes is decided by its head alone, in a fixed order."""

from __future__ import annotations

import base64
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.sandbox.backends.base import ENVD_PORT
from ppio_agent.sandbox.edge.addressing import (
    BadRoute,
    ControlPlane,
    SandboxPort,
    Target,
    is_own_host,
    route,
)

DOMAIN = "sandbox.test"
ID = "abcdefghij0123456789"
OTHER = "b" * 20
TOKENS = {"live-token": ID}
SHORT = "0123456789abcdef" * 2

ids = st.text(string.ascii_lowercase + string.digits, min_size=20, max_size=20)
ports = st.integers(1, 65535)
clients = st.sampled_from(["", "-local", "-0b3f-2"])
prefixes = st.sampled_from(["ppio", "e2b"])


def ask(
    headers: dict[str, str], target: str = "/", domain: str = DOMAIN
) -> Target | BadRoute:
    """Route a request given as readable text."""
    fields = [(n.lower().encode(), v.encode()) for n, v in headers.items()]
    return find(fields, target.encode(), domain)


def find(
    fields: list[tuple[bytes, bytes]], target: bytes = b"/", domain: str = DOMAIN
) -> Target | BadRoute:
    """Route a request given as it comes."""
    return route(
        fields,
        target,
        domain=domain,
        sandbox_of=TOKENS.get,
        is_short_key=SHORT.__eq__,
    )


def is_bad(found: Target | BadRoute) -> bool:
    return isinstance(found, BadRoute)


@given(ids, ports, clients, st.sampled_from(["", ":3900", "."]))
def test_a_host_label_names_port_and_sandbox(
    sandbox_id: str, port: int, client: str, tail: str
) -> None:
    """Whatever client's part, listener's port or root dot follows."""
    host = f"{port}-{sandbox_id}{client}.{DOMAIN}{tail}"
    assert ask({"Host": host}) == SandboxPort(sandbox_id, port)


@given(ids, ports, clients, prefixes)
def test_headers_name_port_and_sandbox(
    sandbox_id: str, port: int, client: str, prefix: str
) -> None:
    """Under any host, in either spelling."""
    headers = {
        "Host": "127.0.0.1:3900",
        f"{prefix}-Sandbox-Id": sandbox_id + client,
        f"{prefix}-Sandbox-Port": str(port),
    }
    assert ask(headers, "/ping?x=1") == SandboxPort(sandbox_id, port)


def test_envd_is_the_default_port_of_the_headers() -> None:
    """An id alone means the controller in the sandbox."""
    assert ask({"Host": "x", "E2b-Sandbox-Id": ID}) == SandboxPort(ID, ENVD_PORT)


@given(ids, ports, ids, ports)
def test_label_and_headers_agree_or_are_refused(
    label_id: str, label_port: int, header_id: str, header_port: int
) -> None:
    """Nobody has to guess which of two targets was meant."""
    found = ask(
        {
            "Host": f"{label_port}-{label_id}.{DOMAIN}",
            "PPIO-Sandbox-Id": header_id,
            "PPIO-Sandbox-Port": str(header_port),
        }
    )
    if (label_id, label_port) == (header_id, header_port):
        assert found == SandboxPort(label_id, label_port)
    else:
        assert is_bad(found)


def test_a_header_that_leaves_the_port_open_agrees_with_any_label() -> None:
    """The id alone contradicts nothing."""
    headers = {"Host": f"3000-{ID}.{DOMAIN}", "PPIO-Sandbox-Id": f"{ID}-local"}
    assert ask(headers) == SandboxPort(ID, 3000)


@pytest.mark.parametrize("port", ["0", "65536", "99999", "080808", "x", "-1", "", "१"])
def test_a_port_out_of_range_is_refused(port: str) -> None:
    """In the headers, and in a label as far as it looks like one."""
    headers = {"Host": "x", "PPIO-Sandbox-Id": ID, "PPIO-Sandbox-Port": port}
    fields = [(n.lower().encode(), v.encode()) for n, v in headers.items()]
    assert is_bad(find(fields))
    if port.isascii() and port.isdigit():
        assert is_bad(ask({"Host": f"{port}-{ID}.{DOMAIN}"}))


@pytest.mark.parametrize("bad", ["", "abc", ID.upper(), ID + "x", "a_" + ID[2:], "-x"])
def test_an_id_of_the_wrong_form_is_refused(bad: str) -> None:
    """It can belong to no sandbox."""
    assert is_bad(ask({"Host": "x", "PPIO-Sandbox-Id": bad}))
    if bad != ID.upper():  # host names have no case
        assert is_bad(ask({"Host": f"8080-{bad}.{DOMAIN}"}))


def test_host_names_have_no_case() -> None:
    """As DNS has it."""
    assert ask({"Host": f"8080-{ID.upper()}.SANDBOX.test"}) == SandboxPort(ID, 8080)


def test_two_spellings_that_contradict_are_refused() -> None:
    """The same sandbox twice is fine, two sandboxes are not."""
    both = {"Host": "x", "PPIO-Sandbox-Id": ID, "E2b-Sandbox-Id": f"{ID}-local"}
    assert ask(both) == SandboxPort(ID, ENVD_PORT)
    assert is_bad(ask({**both, "E2b-Sandbox-Id": OTHER}))


@pytest.mark.parametrize(
    "host",
    [
        f"8080-{ID}.elsewhere.test",
        f"8080-{ID}",
        f"x.8080-{ID}.{DOMAIN}",
        f"api.{DOMAIN}",
        DOMAIN,
        "127.0.0.1:3900",
        "[::1]:3900",
        "",
    ],
)
def test_other_hosts_are_the_control_plane(host: str) -> None:
    """Only the left-most label directly under the domain counts."""
    assert ask({"Host": host}) == ControlPlane()


def test_a_port_in_the_configured_domain_does_not_count() -> None:
    """An embedded platform's domain carries its listener's port."""
    host = f"8080-{ID}.{DOMAIN}:41234"
    assert ask({"Host": host}, domain=f"{DOMAIN}:41234") == SandboxPort(ID, 8080)


@pytest.mark.parametrize(
    "path",
    [
        "/sandboxes",
        "/sandboxes/x/connect?a=1",
        "/v2/sandboxes",
        "/v2/templates/x",
        "/templates",
        "/platform/v1/status",
        "http://127.0.0.1:3900/sandboxes",
    ],
)
@pytest.mark.parametrize(
    "key",
    [
        {"X-API-KEY": "k"},
        {"Authorization": "Bearer k"},
        {"Authorization": "bearer\tk"},
    ],
    ids=["key", "bearer", "tab"],
)
def test_calls_of_the_control_plane_may_carry_routing_headers(
    path: str, key: dict[str, str]
) -> None:
    """SDKs send them with every call; a key and the path decide."""
    headers = {"Host": "x", "E2b-Sandbox-Id": ID, "X-Access-Token": "live-token"}
    assert ask({**headers, **key}, path) == ControlPlane()
    assert ask(headers, path) == SandboxPort(ID, ENVD_PORT)


@pytest.mark.parametrize("path", ["/files", "/sandboxesx", "/x/sandboxes", "/"])
def test_other_paths_go_to_the_sandbox_in_spite_of_a_key(path: str) -> None:
    """A client may forward its key to its agent."""
    headers = {"Host": "x", "E2b-Sandbox-Id": ID, "X-API-KEY": "k"}
    assert ask(headers, path) == SandboxPort(ID, ENVD_PORT)


def test_the_label_wins_over_a_control_path() -> None:
    """An agent may have a route `/templates`."""
    headers = {"Host": f"8080-{ID}.{DOMAIN}", "X-API-KEY": "k"}
    assert ask(headers, "/templates") == SandboxPort(ID, 8080)


def test_a_live_token_alone_means_envd() -> None:
    """Some SDK calls send nothing else."""
    assert ask({"Host": "x", "X-Access-Token": "live-token"}) == SandboxPort(
        ID, ENVD_PORT
    )
    assert ask({"Host": "x", "X-Access-Token": "dead"}) == ControlPlane()


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"host",
                    b"ppio-sandbox-id",
                    b"e2b-sandbox-port",
                    b"x-access-token",
                    b"x-api-key",
                    b"authorization",
                ]
            ),
            st.binary(max_size=40),
        )
    ),
    st.binary(max_size=40),
)
def test_any_head_has_a_target_or_is_bad(
    headers: list[tuple[bytes, bytes]], target: bytes
) -> None:
    """Never an exception, and never a target that cannot exist."""
    found = find(headers, target)
    assert isinstance(found, (ControlPlane, SandboxPort, BadRoute))
    if isinstance(found, SandboxPort):
        assert len(found.sandbox_id) == 20
        assert 1 <= found.port <= 65535


def basic(user: str) -> dict[str, str]:
    """Return what a client sends that finds a user name in its URL."""
    pair = base64.b64encode(f"{user}:".encode()).decode()
    return {"Host": "127.0.0.1:3443", "Authorization": f"Basic {pair}"}


@given(ids, ports, clients)
def test_a_basic_user_names_port_and_sandbox(
    sandbox_id: str, port: int, client: str
) -> None:
    """As a host label would, where no host name leads here."""
    user = f"{port}-{sandbox_id}{client}.{SHORT}"
    assert ask(basic(user)) == SandboxPort(sandbox_id, port)


def test_a_basic_user_without_a_short_key_names_nothing() -> None:
    """An agent's own users may have any names."""
    assert ask(basic(f"8080-{ID}.{SHORT[:-1]}0")) == ControlPlane()
    assert ask(basic(f"8080-{ID}")) == ControlPlane()
    assert ask({**basic("x"), "Authorization": "Basic !"}) == ControlPlane()


def test_the_basic_user_api_is_for_the_control_plane() -> None:
    """Whatever routing headers say; only a host label is stronger."""
    headers = {**basic(f"api.{SHORT}"), "E2b-Sandbox-Id": ID}
    assert ask(headers) == ControlPlane()
    headers["Host"] = f"8080-{ID}.{DOMAIN}"
    assert ask(headers) == SandboxPort(ID, 8080)


def test_a_basic_user_must_agree_with_the_routing_headers() -> None:
    """As a host label must."""
    headers = basic(f"8080-{ID}.{SHORT}")
    assert ask({**headers, "E2b-Sandbox-Id": ID}) == SandboxPort(ID, 8080)
    assert is_bad(ask({**headers, "E2b-Sandbox-Id": OTHER}))
    assert is_bad(ask(basic(f"99999-{ID}.{SHORT}")))


@pytest.mark.parametrize(
    ("authority", "own"),
    [
        (f"8080-{ID}.{DOMAIN}:443", True),
        (f"8080-{ID}-local.{DOMAIN.upper()}:443", True),
        (f"api.{DOMAIN}:443", True),
        ("127.0.0.1:3443", True),
        ("127.0.0.1:3444", False),
        (f"api.{DOMAIN}:80", False),
        (f"api.{DOMAIN}", False),
        (f"api.{DOMAIN}.evil.test:443", False),
        (f"evil.{DOMAIN}:443", False),
        (f"0-{ID}.{DOMAIN}:443", False),
        (f"8080-short.{DOMAIN}:443", False),
        (f"{DOMAIN}:443", False),
        ("example.com:443", False),
        ("127.0.0.1:22", False),
        ("", False),
    ],
)
def test_own_hosts_are_those_of_the_platform(authority: str, *, own: bool) -> None:
    """The edge is no proxy for anything else."""
    assert is_own_host(authority, domain=DOMAIN, own="127.0.0.1:3443") is own


def test_a_port_of_the_domain_is_that_of_its_hosts() -> None:
    """As where the TLS listener has the name, but not the port 443."""
    hosts = {"api.sandbox.test:3443": True, "api.sandbox.test:443": False}
    for authority, own in hosts.items():
        assert is_own_host(authority, domain="sandbox.test:3443", own=None) is own


@given(st.text(max_size=80))
def test_no_text_makes_it_fail(text: str) -> None:
    """An authority is whatever a client sends."""
    assert is_own_host(text, domain=DOMAIN, own=None) in {True, False}
