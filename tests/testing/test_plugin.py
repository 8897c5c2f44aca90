"""The fixtures, in runs of pytest as users have them."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

TESTS = """
    import urllib.request

    import pytest

    from ppio_agent import PPIOAgentRuntimeApp

    AGENT = '''
    from ppio_agent import PPIOAgentRuntimeApp

    app = PPIOAgentRuntimeApp()

    @app.entrypoint
    def agent(request):
        return request["prompt"].upper()

    if __name__ == "__main__":
        app.run()
    '''
    MANIFEST = '''
    apiVersion: v1
    kind: Agent
    metadata: {name: shout, version: 1.0.0, author: a@example.com, description: x}
    spec: {entrypoint: app.py}
    '''

    app = PPIOAgentRuntimeApp()
    starts = []


    @app.on_startup
    def started():
        starts.append(1)


    @app.entrypoint
    def echo(request):
        return request


    @pytest.fixture(scope="module")
    def template(ppio_platform, tmp_path_factory):
        import textwrap

        folder = tmp_path_factory.mktemp("shout")
        (folder / "app.py").write_text(textwrap.dedent(AGENT))
        (folder / ".ppio-agent.yaml").write_text(textwrap.dedent(MANIFEST))
        return ppio_platform.deploy(folder).template_id


    kept = []


    def test_an_agent_is_called(ppio_client, template):
        kept.append(ppio_client.create_session(template))
        assert kept[0].invoke("hi").result == "HI"


    def test_its_sandbox_ended_with_the_test(ppio_client, ppio_platform):
        from ppio_agent.exceptions import SessionNotFoundError, SessionClosedError

        assert ppio_client.config.base_url == ppio_platform.url
        assert ppio_client.config.domain != "shell.example"
        with pytest.raises(SessionClosedError):
            kept[0].invoke("hi")
        assert ppio_client.list_sessions() == ()


    def test_a_handler_is_called_in_process(ppio_agent_app):
        agent = ppio_agent_app(lambda request: request["prompt"] * 2)
        assert agent.client.invoke({"prompt": "ab"}).result == "abab"


    def test_a_handler_is_served(ppio_agent_app):
        agent = ppio_agent_app(echo, max_concurrency=1)
        assert agent.app.config.max_concurrency == 1
        kept.append(agent)
        with urllib.request.urlopen(agent.url + "/ping") as answer:
            assert answer.status == 200


    def test_its_server_ended_with_the_test():
        with pytest.raises(OSError):
            urllib.request.urlopen(kept[-1].url + "/ping")


    @pytest.mark.parametrize("turn", [1, 2])
    def test_an_app_of_a_module_is_served_once(ppio_agent_app, turn):
        agent = ppio_agent_app(app)
        with urllib.request.urlopen(agent.url + "/ping") as answer:
            assert answer.status == 200
        assert starts == [1]
        with pytest.raises(TypeError, match="an app has its own"):
            ppio_agent_app(app, max_concurrency=1)
"""

BROKEN = """
    import pytest

    @pytest.fixture(autouse=True, scope="session")
    def full_disk():
        from ppio_agent.sandbox import SandboxPlatform

        def start(self):
            raise OSError(28, "No space left on device")

        SandboxPlatform.start = start


    def test_one(ppio_client):
        pass
"""


def _run(folder: Path, source: str, *options: str) -> str:
    """Run a test file in a process of its own and return what pytest printed."""
    (folder / "test_it.py").write_text(textwrap.dedent(source))
    # Plug-ins of others take longer to load than ours takes to test.
    others = ("cacheprovider", "hypothesispytest", "anyio", "timeout")
    options = (*(f"-pno:{name}" for name in others), "-W", "error", *options)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_it.py"],
        cwd=folder,
        env={**os.environ, "PPIO_DOMAIN": "shell.example", "PPIO_PLUGINS": ""},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.stdout + done.stderr


def test_the_fixtures_do_what_they_say(tmp_path: Path) -> None:
    """Platform, client, agents in process and on a port; each ends when it should."""
    page = (Path(__file__).parents[2] / "docs/testing.md").read_text()
    first = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "test_of_the_page.py").write_text(first)
    printed = _run(tmp_path, TESTS, "test_of_the_page.py")
    assert " 9 passed in " in printed, printed


def test_a_platform_that_does_not_start_is_one_line(tmp_path: Path) -> None:
    """No traceback of ours hides the reason."""
    printed = _run(tmp_path, BROKEN)
    assert "1 error" in printed
    reason = (
        "ppio_platform: the local platform does not start:"
        " [Errno 28] No space left on device"
    )
    assert reason in printed.splitlines()
    assert "Traceback" not in printed
    assert "platform.py" not in printed


def test_pytest_lists_the_fixtures(tmp_path: Path) -> None:
    """With a line of help each."""
    printed = _run(tmp_path, TESTS, "--fixtures")
    for line in (
        "A local sandbox platform for the whole run",
        "A client of `ppio_platform`; its sessions and sandboxes end with the test.",
        "Serve an agent for a test; call it with a handler or an app.",
    ):
        assert line in printed


def test_loading_the_plug_in_loads_nothing() -> None:
    """Every run of pytest loads it, also those that have nothing to do with agents."""
    heavy = "{'attrs', 'flask', 'requests', 'ppio_agent.client', 'ppio_agent.serving'}"
    code = f"""
import sys, ppio_agent.testing.plugin
print(sorted({heavy} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
