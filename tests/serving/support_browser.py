"""What the tests of the playground share: a real browser, and a line that can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.support import SLOW, needs_program

__all__ = ["Relay", "Visit", "open_browser"]

_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Run Chromium without a window for the time of the block."""
    program = needs_program("chromium")
    expect.set_options(timeout=10_000 * SLOW)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=list(_ARGUMENTS)
        )
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """One person's visit to a playground; notes whatever the page should not do.

    Attributes:
        page: The page.
        requested: Address of every request that the browser made for it.
        complaints: Errors of scripts, and what the content policy refused.
    """

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.url = url
        self.requested: list[str] = []
        self.complaints: list[str] = []
        self._context = browser.new_context(**context)
        self.page: Page = self._context.new_page()
        self.page.set_default_timeout(10_000 * SLOW)
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._on_console)

    def _on_console(self, message: ConsoleMessage) -> None:
        # A refused request is no fault of the page, which tells of it itself.
        if not message.text.startswith("Failed to load resource"):
            self.complaints.append(message.text)

    def __enter__(self) -> Visit:
        self.page.goto(self.url)
        expect(self.page.locator("#health")).not_to_have_text("Connecting")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._context.close()
        if kind is None:
            assert self.complaints == []

    def say(self, text: str) -> None:
        """Write a message and send it."""
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def expect_answer(self, *texts: str) -> None:
        """Wait until the last answer consists of these pieces, and nothing else."""
        answer = self._last.locator(".answer > :not(.label)")
        expect(answer).to_have_text(list(texts), use_inner_text=True)

    def expect_state(self, words: str) -> None:
        """Wait until the last turn is in this state."""
        expect(self._last.locator(".state")).to_have_text(words)

    def expect_problem(self, *texts: str) -> None:
        """Wait until the last turn tells an error that has all these texts."""
        for text in texts:
            expect(self._last.locator(".problem")).to_contain_text(text)

    def id_of(self, name: str) -> str:
        """Return an id from the details of the last turn, and leave them open."""
        if not self._last.locator(".ids").is_visible():
            self._last.get_by_role("button", name="Details").click()
        row = self._last.locator(f"dt:text-is('{name}') + dd")
        found = row.text_content()
        assert found is not None
        return found

    @property
    def _last(self) -> Any:
        return self.page.locator(".turn").last


class Relay:
    """A line between browser and server, which can be cut.

    Attributes:
        url: Where the server is reached by it.
        step: How many bytes are passed on at once.
    """

    def __init__(self, port: int) -> None:
        self.step = 65536
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        # Both grow by the accepting thread only.
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="test-relay")
        self._acceptor.start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listener)
        self._acceptor.join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for one in (self._listener, *self._sockets):
            one.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._sockets.append(near)
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets.append(far)
                for way in ((near, far), (far, near)):
                    thread = threading.Thread(
                        target=self._pass, args=way, name="test-relay"
                    )
                    self._threads.append(thread)
                    thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(self.step):
                sink.sendall(data)
        _shut(source, sink)

    def cut(self) -> None:
        """Cut all connections; new ones are taken."""
        _shut(*self._sockets)


def _shut(*sockets: socket.socket) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
