"""What the documentation says is run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ppio_agent
from ppio_agent import exceptions
from ppio_agent.hooks import specs
from tests.support import write_agent

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TALKER = """
    from ppio_agent import PPIOAgentRuntimeApp

    app = PPIOAgentRuntimeApp()

    @app.entrypoint
    def agent(request):
        yield from str(request["prompt"]).split()

    if __name__ == "__main__":
        app.run()
"""


def _blocks(page: Path) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE
    )


@pytest.fixture
def deployed(
    platform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The agents that the pages call, and the platform they call them on."""
    for name in ("my-agent", "hello-agent"):
        platform.deploy(write_agent(tmp_path / name, TALKER, name=name))
    monkeypatch.chdir(tmp_path)  # where pages may write files
    monkeypatch.setenv("PPIO_API_URL", platform.url)
    monkeypatch.setenv("PPIO_API_KEY", platform.api_key)
    return None


@pytest.mark.usefixtures("deployed")
@pytest.mark.parametrize(
    "page", [page for page in PAGES if _blocks(page)], ids=lambda page: page.name
)
def test_python_blocks_run(page: Path) -> None:
    """The Python blocks of a page run, one after the other, as one program."""
    namespace: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(_blocks(page), 1):
        exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that exists."""
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    missing = [
        link
        for link in links
        if "://" not in link and not (page.parent / link).exists()
    ]
    assert missing == []


@pytest.mark.parametrize(
    "page",
    [*PAGES, *sorted((ROOT / "examples").rglob("*.py"))],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_curl_sends_json(page: Path) -> None:
    """With `-d` alone it says that it sends a form, which is refused."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    for command in re.findall(r"\bcurl [^\n]*", text):
        if re.search(r" (-d|--data\S*)[ =]", command):
            assert "Content-Type: application/json" in command, command


def test_every_error_is_documented() -> None:
    """Each class has a row in the reference, with its code and status."""
    page = (ROOT / "docs/reference/errors.md").read_text()
    for name in exceptions.__all__:
        cls = getattr(exceptions, name)
        if isinstance(cls, type):
            assert f"`{name}`" in page, name
        if isinstance(cls, type) and issubclass(cls, exceptions.PPIOAgentError):
            row = next(x for x in page.splitlines() if x.startswith(f"| `{name}`"))
            assert f"`{cls.code}`" in row, name
            assert f"| {cls.http_status} |" in row, name


def test_every_hook_is_documented() -> None:
    """Each hook has a heading in the reference and a row in the page on plug-ins."""
    reference = (ROOT / "docs/reference/hooks.md").read_text()
    page = (ROOT / "docs/plugins.md").read_text()
    hooks = [name for name in specs.__all__ if name.startswith("ppio_")]
    assert hooks
    assert [name for name in hooks if f"## `{name}" not in reference] == []
    assert [name for name in hooks if f"\n| [`{name}(" not in page] == []


def test_every_setting_is_documented() -> None:
    """Each field of the configurations is in the reference of its part."""
    import attrs

    from ppio_agent import actors

    for cls, page in (
        (ppio_agent.AgentConfig, "agent-app"),
        (ppio_agent.ClientConfig, "client"),
        (ppio_agent.PlatformConfig, "platform"),
        (actors.RuntimeOptions, "actors"),
        (actors.ActorOptions, "actors"),
        (actors.Supervision, "actors"),
    ):
        text = (ROOT / f"docs/reference/{page}.md").read_text()
        names = [f.alias for f in attrs.fields(cls) if f.init and f.alias]
        assert [name for name in names if f"`{name}`" not in text] == [], page


def test_every_command_is_documented() -> None:
    """Each command of the command line has its place in the reference."""
    from ppio_agent.cli.program import ppio_agent as group

    page = (ROOT / "docs/reference/cli.md").read_text()
    names = [f"ppio-agent {name}" for name in group.commands]
    assert [name for name in names if name not in page] == []
