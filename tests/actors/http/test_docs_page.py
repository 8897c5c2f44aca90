"""The page at `/docs`, in a real browser, against a real server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from ppio_agent.serving import ApiKeyAuth
from tests.actors.http.conftest import Serve
from tests.actors.http.support import Http
from tests.serving.support_browser import Visit, open_browser

KEY = "sk-0123456789abcdef"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as browser:
        yield browser


class _Visit(Visit):
    """One person's visit to the page."""

    def __init__(self, browser: Browser, http: Http) -> None:
        super().__init__(browser, f"{http.server.url}/docs")
        self.origin = http.server.url

    def __enter__(self) -> _Visit:
        self.page.goto(self.url)
        return self

    def send(self, operation: str) -> None:
        """Send the request of an operation whose form is open."""
        self.page.locator(f"#{operation}").get_by_role("button", name="Send").click()

    def expect_answer(self, operation: str, *texts: str) -> None:
        for text in texts:
            expect(self.page.locator(f"#{operation}")).to_contain_text(text)


def test_the_page_shows_and_calls_the_api(browser: Browser, shared: Http) -> None:
    """Answers and streams; and it asks nobody but this server."""
    with _Visit(browser, shared) as visit:
        run = visit.page.locator("#run")
        run.get_by_label("agent_name").select_option("echo")
        expect(run.get_by_text("curl -X POST")).to_contain_text("/agents/echo/run")
        visit.send("run")
        visit.expect_answer("run", "200", "Echo: Hello! How are you?")
        run.get_by_label("stream").select_option("true")
        visit.send("run")
        visit.expect_answer("run", "text/event-stream", ": end")
        visit.page.locator("#agents > summary").click()
        visit.send("agents")
        visit.expect_answer("agents", "Says it.")
    assert visit.requested
    assert all(url.startswith(f"{visit.origin}/") for url in visit.requested)


def test_a_key_is_asked_for(browser: Browser, serve: Serve) -> None:
    """The page itself says nothing of what is served."""
    http = serve(auth=ApiKeyAuth([KEY]))
    with _Visit(browser, http) as visit:
        key = visit.page.get_by_label("API key")
        key.fill(KEY)
        key.press("Enter")
        visit.page.locator("#run").get_by_label("agent_name").select_option("echo")
        visit.send("run")
        visit.expect_answer("run", "200", "Echo:")
        assert KEY not in visit.page.content()
