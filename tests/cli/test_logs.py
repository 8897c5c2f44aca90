"""Printing and following logs, across a break, too."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ppio_agent import cli
from ppio_agent.cli import logs as module
from tests.cli.clikit import AGENT, Command
from tests.support import wait_until, write_agent
from tests.support_platform import FakePlatform


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePlatform]:
    with FakePlatform() as fake:
        monkeypatch.setenv("PPIO_API_URL", fake.url)
        monkeypatch.setenv("PPIO_API_KEY", "sk-test-0123456789abcdef")
        yield fake


def _run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, list[str]]:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(argv))
    return int(ended.value.code or 0), capsys.readouterr().out.splitlines()


def test_what_is_there_is_printed_to_its_end(
    fake: FakePlatform, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a log that ends when it is read; nothing is waited for."""
    asked: list[str] = []

    def answer(exchange: Any) -> None:
        asked.append(exchange.request.path.partition("?")[2])
        exchange.start_stream()
        exchange.send(b'id: 1\nevent: log\ndata: {"message": "one"}\n\n')
        exchange.send(b"id: 1\nevent: end\ndata: {}\n\n")
        exchange.end_stream()

    fake.on("GET", "/platform/v1/sandboxes/x/logs/stream", answer)
    assert _run(capsys, "logs", "x") == (0, ["one"])
    assert _run(capsys, "logs", "x", "--tail", "3") == (0, ["one"])
    assert asked == ["start=0&follow=false", "start=0&tail=3&follow=false"]


def test_following_survives_a_break_and_ends_with_the_sandbox(
    fake: FakePlatform,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was printed is not printed again: the last id is sent."""
    monkeypatch.setattr(module, "_RETRY_EVERY", 0.01)
    asked: list[str | None] = []

    def event(number: int, name: str, value: Any) -> bytes:
        return f"id: {number}\nevent: {name}\ndata: {json.dumps(value)}\n\n".encode()

    def answer(exchange: Any) -> None:
        asked.append(exchange.request.headers.get("last-event-id"))
        exchange.start_stream()
        if len(asked) == 1:
            exchange.send(event(5, "log", {"message": "one"}))
            exchange.cut()
            return
        exchange.send(event(6, "log", {"message": "two"}))
        exchange.send(event(6, "end", {}))
        exchange.end_stream()

    fake.on("GET", "/platform/v1/sandboxes/x/logs/stream", answer)
    assert _run(capsys, "logs", "x", "-f") == (0, ["one", "two"])
    assert asked == [None, "5"]


def test_a_break_after_a_long_silence_is_mended(
    fake: FakePlatform,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The platform's time to come back begins when the connection breaks."""
    monkeypatch.setattr(module, "_RETRY_EVERY", 0.01)
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    breaks = iter([True, True, False])

    def answer(exchange: Any) -> None:
        exchange.start_stream()
        if next(breaks):
            threading.Event().wait(0.1)
            exchange.cut()
        else:
            exchange.send(b"event: end\ndata: {}\n\n")
            exchange.end_stream()

    fake.on("GET", "/platform/v1/sandboxes/x/logs/stream", answer)
    assert _run(capsys, "logs", "x", "-f") == (0, [])


@pytest.mark.parametrize("known", [False, True])
def test_a_sandbox_that_is_gone_after_a_break_has_ended(
    fake: FakePlatform,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    known: bool,
) -> None:
    """One that was never there is status 4."""
    monkeypatch.setattr(module, "_RETRY_EVERY", 0.01)
    times: list[int] = []

    def answer(exchange: Any) -> None:
        times.append(1)
        if known and len(times) == 1:
            exchange.start_stream()
            exchange.send(b'id: 1\nevent: log\ndata: {"message": "one"}\n\n')
            exchange.cut()
        else:
            exchange.reply(404, {"code": 404, "message": "it is not there"})

    fake.on("GET", "/platform/v1/sandboxes/x/logs/stream", answer)
    expected = (0, ["one"]) if known else (4, [])
    assert _run(capsys, "logs", "x", "-f") == expected


def test_a_platform_that_stops_says_so(
    fake: FakePlatform, capsys: pytest.CaptureFixture[str]
) -> None:
    """That is not the end of the sandbox's own; status 5."""

    def answer(exchange: Any) -> None:
        exchange.start_stream()
        exchange.send(
            b'event: error\ndata: {"message": "the platform is stopping"}\n\n'
        )
        exchange.end_stream()

    fake.on("GET", "/platform/v1/sandboxes/x/logs/stream", answer)
    assert _run(capsys, "logs", "x", "-f") == (5, [])


def test_a_live_log_is_followed_to_the_end_of_its_sandbox(command: Command) -> None:
    """By the real platform: the last line, then lines that come, then the end."""
    write_agent(Path("k"), AGENT, name="followed")
    command("deploy", "k")
    kept = command("invoke", "followed", "hi", "--keep")
    sandbox = kept.err.split()[1].rstrip(",")
    wait_until(lambda: "asked hi" in command("logs", sandbox).out, what="the log")
    assert command("logs", sandbox, "--tail", "1").out == "asked hi\n"
    assert command("logs", sandbox, "--since", "1h").out.endswith("asked hi\n")
    following: list[str] = []

    def follow() -> None:
        with module.find_target() as target:
            following.extend(module._read(target, sandbox, 0, 1, follow=True))

    reader = threading.Thread(target=follow)
    reader.start()
    wait_until(lambda: following, what="the last line")
    command("sandboxes", "kill", sandbox)
    reader.join(10)
    assert not reader.is_alive()
    assert following == ["asked hi"]
    assert command("logs", sandbox, "-f", "--tail", "1").out == "asked hi\n"
