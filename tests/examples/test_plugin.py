"""The example plug-in, built, installed and at work as its users would have it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppio_agent.testing import FaultServer, in_turn, reply
from tests.support_platform import KEY, Exchange, FakePlatform, echo_agent

PLUGIN = Path(__file__).parents[2] / "examples" / "plugin"

PROGRAM = """
    import json, sys
    from ppio_agent import AgentRuntimeClient, ClientConfig

    config = ClientConfig(base_url=sys.argv[1])
    with AgentRuntimeClient(config=config) as client:
        with client.create_session("tpl1") as session:
            answer = session.invoke("hi").result
            chunks = list(session.invoke_stream("stream"))
    usage = sys.modules.get("ppio_acme") and sys.modules["ppio_acme"].plugin.usage
    print(json.dumps([answer, chunks, usage and usage.report()]))
"""

Run = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the package was installed from its wheel."""
    folder = tmp_path_factory.mktemp("plugin")
    source, wheels, site = (folder / name for name in ("source", "wheels", "site"))
    shutil.copytree(PLUGIN, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    offline = ["--no-index", "--no-deps"]
    subprocess.run(
        [*pip, "wheel", *offline, "--no-build-isolation", "-w", wheels, source],
        check=True,
        timeout=60,
    )
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        assert "ppio_acme.py" in files.namelist()
    subprocess.run(
        [*pip, "install", *offline, "--target", site, wheel], check=True, timeout=60
    )
    return site


@pytest.fixture
def platform() -> Iterator[FakePlatform]:
    with FakePlatform(_agent) as platform:
        yield platform


def _agent(exchange: Exchange) -> None:
    if b"stream" not in exchange.request.body:
        echo_agent(exchange)
        return
    exchange.start_stream(invocation_id="inv_2")
    exchange.send(b"id: 1\ndata: 1\n\nid: 2\ndata: 2\n\n")
    exchange.send(b"id: 3\nevent: end\ndata: {}\n\n")
    exchange.end_stream()


@pytest.fixture
def run(installed: Path, platform: FakePlatform, tmp_path: Path) -> Run:
    """Run a program that knows nothing of plug-ins, where this one is installed."""
    script = tmp_path / "program.py"
    script.write_text("\n".join(line[4:] for line in PROGRAM.splitlines()))

    def run(**environ: str) -> list[Any]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PPIO_")}
        done = subprocess.run(
            [sys.executable, "-W", "error", script, platform.url],
            env={**kept, "PYTHONPATH": str(installed), "PPIO_API_KEY": KEY, **environ},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        found: list[Any] = json.loads(done.stdout)
        return found

    return run


def _token(name: str) -> Any:
    return reply(200, json.dumps({"token": name, "expires_in": 300}).encode())


@pytest.mark.parametrize("chosen", [{}, {"PPIO_PLUGINS": "acme"}], ids=["all", "named"])
def test_it_takes_part_where_it_is_installed(
    run: Run, platform: FakePlatform, chosen: dict[str, str]
) -> None:
    """Tokens, fetched anew when they are refused; the team; an account of it all."""

    def refuse_old(exchange: Exchange) -> None:
        if exchange.request.headers.get("authorization") == "Bearer old":
            exchange.reply(401, {"code": 401, "message": "expired"})

    platform.on("GET", "/templates", refuse_old)
    with FaultServer(in_turn(_token("old"), _token("new"))) as identity:
        answer, chunks, usage = run(
            ACME_TOKEN_URL=identity.url, ACME_TEAM="search", **chosen
        )
    assert answer["echo"] == {"prompt": "hi"}
    assert chunks == [1, 2]
    assert len(identity.requests) == 2
    for request in platform.requests:
        assert request.headers["x-acme-team"] == "search"
        assert "x-api-key" not in request.headers
        token = request.headers.get("authorization")
        assert token in ({None} if request.to_agent else {"Bearer old", "Bearer new"})
    seconds = usage.pop("seconds")
    assert set(seconds) == {"template", "agent", "sandbox"}
    assert usage == {
        "attempts.template": 3, "calls.template": 2,  # one was refused
        "attempts.agent": 3, "calls.agent": 3,
        "attempts.sandbox": 1, "calls.sandbox": 1,
        "events.message": 2, "events.end": 1,
    }  # fmt: skip


def test_it_can_be_left_out(run: Run, platform: FakePlatform) -> None:
    """By an empty variable: it is not even imported, and the API key is used."""
    answer, chunks, usage = run(PPIO_PLUGINS="", ACME_TOKEN_URL="http://127.0.0.1:9")
    assert (answer["count"], chunks, usage) == (1, [1, 2], None)
    assert not any("x-acme-team" in r.headers for r in platform.requests)
    (created,) = platform.seen("POST", "/sandboxes")
    assert created.headers["x-api-key"] == KEY


def test_without_an_identity_service_the_key_is_used(
    run: Run, platform: FakePlatform
) -> None:
    """The plug-in leaves it to the next one, and at last to the key."""
    _, _, usage = run()
    assert usage["calls.agent"] == 3
    (created,) = platform.seen("POST", "/sandboxes")
    assert created.headers["x-api-key"] == KEY
    assert "x-acme-team" not in created.headers
