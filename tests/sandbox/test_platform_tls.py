"""The platform over TLS, as clients have it that know nothing but https."""

from __future__ import annotations

import base64
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from ppio_agent import AgentRuntimeClient, ClientConfig
from ppio_agent.exceptions import TLSUnavailableError
from ppio_agent.sandbox import PlatformConfig, SandboxPlatform
from tests.sandbox.agents import HTTP_AGENT, write_agent
from tests.support import SLOW

KEY = "sk_red_0123456789"

AGENT = """
from ppio_agent import PPIOAgentRuntimeApp

app = PPIOAgentRuntimeApp()


@app.entrypoint
def agent(request):
    for word in request["prompt"].split():
        yield word


app.run()
"""


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxPlatform]:
    data = tmp_path_factory.mktemp("platform") / "data"
    config = PlatformConfig(data_dir=data, keys={KEY: "red"}, tls_port=0)
    with SandboxPlatform(config) as platform:
        yield platform


@pytest.fixture
def http(platform: SandboxPlatform) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.trust_env = False
        session.verify = platform.env()["SSL_CERT_FILE"]
        yield session


@pytest.fixture
def short(platform: SandboxPlatform) -> str:
    return platform.domain.partition("@")[0]


def basic(user: str) -> dict[str, str]:
    pair = base64.b64encode(f"{user}:".encode()).decode()
    return {"Authorization": f"Basic {pair}"}


def test_env_has_what_each_client_reads(platform: SandboxPlatform) -> None:
    """The plain URL for those that take one, a domain for those that do not."""
    env = platform.env()
    short, _, place = env["PPIO_DOMAIN"].partition("@")

    assert platform.tls_url == f"https://{place}"
    assert len(short) == 32
    assert env == {
        "PPIO_API_KEY": KEY,
        "PPIO_API_URL": platform.url,
        "PPIO_SANDBOX_URL": platform.url,
        "PPIO_DOMAIN": platform.domain,
        "SSL_CERT_FILE": env["SSL_CERT_FILE"],
        "E2B_API_KEY": KEY,
        "E2B_API_URL": platform.url,
        "E2B_SANDBOX_URL": platform.url,
    }
    assert ssl.create_default_context(cafile=env["SSL_CERT_FILE"])


def test_without_tls_nothing_of_it_is_there(tmp_path: Path) -> None:
    """Nor is anything made for it."""
    config = PlatformConfig(data_dir=tmp_path / "data")
    with SandboxPlatform(config) as platform:
        assert platform.tls_url is None
        assert platform.domain == "sandbox.test"
        assert platform.env().keys().isdisjoint({"PPIO_DOMAIN", "SSL_CERT_FILE"})
    assert not (tmp_path / "data" / "tls").exists()


def test_without_the_extra_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can be started without TLS afterwards."""
    monkeypatch.setitem(sys.modules, "ppio_agent.sandbox.edge.authority", None)
    with pytest.raises(TLSUnavailableError, match=r"ppio-agent\[tls\]"):
        SandboxPlatform(PlatformConfig(data_dir=tmp_path, tls_port=0)).start()
    with SandboxPlatform(PlatformConfig(data_dir=tmp_path)) as platform:
        assert platform.running


def test_the_short_key_lists_templates_and_no_more(
    platform: SandboxPlatform, http: requests.Session, short: str
) -> None:
    """It stands in URLs, so it must not open anything else."""
    url, user = platform.tls_url, basic(f"api.{short}")

    listed = http.get(f"{url}/templates?metadata=true", headers=user)
    assert listed.status_code == 200
    assert "base" in [template["names"][0] for template in listed.json()]
    for method, path in [
        ("HEAD", "/templates"),
        ("POST", "/templates"),
        ("GET", "/templates/base"),
        ("GET", "/v2/templates"),
        ("GET", "/sandboxes"),
        ("POST", "/sandboxes"),
        ("GET", "/platform/v1/status"),
    ]:
        answer = http.request(method, url + path, headers=user, json={})
        assert answer.status_code == 401, (method, path)
    for name in [f"x.{short}", short, "api.", f"api.{'0' * 32}", f"api.{short}0"]:
        answer = http.get(f"{url}/templates", headers=basic(name))
        assert answer.status_code == 401, name


def test_a_key_counts_beside_the_short_key(
    platform: SandboxPlatform, http: requests.Session, short: str
) -> None:
    """Clients send both on the calls that have a header of their own for the key."""
    url, user = f"{platform.tls_url}/sandboxes", basic(f"api.{short}")
    answers = {
        key: http.get(url, headers={**user, "X-API-KEY": key}).status_code
        for key in (KEY, "sk_wrong_0123456789")
    }
    assert answers == {KEY: 200, "sk_wrong_0123456789": 401}


def _create(
    platform: SandboxPlatform, http: requests.Session, **headers: str
) -> dict[str, Any]:
    folder = platform._config.data_dir.parent
    template = platform.deploy(write_agent(folder, "echo", {"app.py": HTTP_AGENT}))
    answer = http.post(
        f"{platform.tls_url}/sandboxes",
        json={"templateID": template.template_id},
        headers={"X-API-KEY": KEY, **headers},
    )
    assert answer.status_code == 201, answer.text
    created: dict[str, Any] = answer.json()
    return created


def test_hosts_that_clients_build_lead_to_the_sandbox(
    platform: SandboxPlatform, http: requests.Session
) -> None:
    """Of the domain they were given; the agent sees neither key nor user name."""
    made = _create(platform, http)
    place = f"{made['sandboxID']}-{made['clientID']}.{made['domain']}"

    assert made["edgeURL"] == platform.tls_url  # not the plain one, for who chose TLS
    answer = _open(http, f"https://8080-{place}/x")
    assert answer.status_code == 200, answer.text
    seen = {name.lower(): value for name, value in answer.json()["headers"].items()}
    assert "authorization" not in seen
    assert seen["x-forwarded-proto"] == "https"
    assert made["domain"].partition("@")[0] not in answer.text
    assert _open(http, f"https://49983-{place}/health").status_code == 204


def _open(http: requests.Session, url: str) -> requests.Response:
    # This library sends a user name only if a password, which may be empty, is there.
    return http.get(url.replace("@", ":@"), timeout=30 * SLOW)


def test_who_asks_by_a_name_is_given_names(
    platform: SandboxPlatform, http: requests.Session
) -> None:
    """As one does behind a proxy, or with a DNS that knows the domain."""
    made = _create(platform, http, Host="api.sandbox.test")
    assert made["domain"] == "sandbox.test"

    http.proxies = {"https": platform.url}
    host = f"8080-{made['sandboxID']}.{made['domain']}"
    answer = http.get(f"https://{host}/x", timeout=30 * SLOW)
    assert answer.status_code == 200, answer.text
    assert made["edgeURL"] == "https://api.sandbox.test"
    with pytest.raises(requests.exceptions.ProxyError, match="403"):
        http.get("https://example.test/")


def test_the_authority_outlives_the_platform(tmp_path: Path) -> None:
    """What a shell was told once holds after a restart."""
    seen = set()
    for _ in range(2):
        config = PlatformConfig(data_dir=tmp_path, tls_port=0)
        with SandboxPlatform(config) as platform:
            bundle = Path(platform.env()["SSL_CERT_FILE"])
            seen.add((platform.domain.partition("@")[0], bundle.read_text()))
    assert len(seen) == 1


def test_our_client_works_over_tls(
    platform: SandboxPlatform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It checks the certificate, by the bundle it is told or that of the environment."""
    template = platform.deploy(write_agent(tmp_path, "words", {"app.py": AGENT}))
    bundle = platform.env()["SSL_CERT_FILE"]
    config = ClientConfig(
        base_url=platform.tls_url, sandbox_url=platform.tls_url, ca_bundle=bundle
    )
    with (
        AgentRuntimeClient(KEY, config=config) as client,
        client.invoke_agent_stream(template.template_id, "one two") as stream,
    ):
        assert list(stream) == ["one", "two"]
    monkeypatch.setenv("SSL_CERT_FILE", bundle)
    with AgentRuntimeClient(KEY, base_url=platform.tls_url) as client:
        assert "words" in [found.name for found in client.list_templates()]


def test_another_program_finds_its_way_by_the_environment(
    platform: SandboxPlatform,
) -> None:
    """With the standard library alone, and nothing but a domain and a bundle."""
    code = """
import base64, os, urllib.request
user, _, place = ("api." + os.environ["PPIO_DOMAIN"]).partition("@")
pair = base64.b64encode(f"{user}:".encode()).decode()
request = urllib.request.Request(f"https://{place}/templates")
request.add_header("Authorization", f"Basic {pair}")
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(opener.open(request).status)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **platform.env()},
        capture_output=True,
        text=True,
        timeout=30 * SLOW,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("200\n", "")
