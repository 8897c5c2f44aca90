"""Commands on many sandboxes: pages, and one that is missing."""

from __future__ import annotations

from typing import Any

import pytest

from ppio_agent import cli
from tests.support_platform import FakePlatform


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A platform with 250 sandboxes, listed by 100."""
    with FakePlatform() as fake:
        monkeypatch.setenv("PPIO_API_URL", fake.url)
        monkeypatch.setenv("PPIO_API_KEY", "sk-test-0123456789abcdef")
        for number in range(250):
            body = {"templateID": "tpl1", "key": str(number)}
            fake.create(_Unheard(body))

        def page(exchange: Any) -> None:
            query = dict(
                pair.split("=")
                for pair in exchange.request.path.split("?")[1].split("&")
            )
            first = int(query.get("nextToken", 0))
            items = [
                {"sandboxID": f"sb{n + 1}"} for n in range(first, min(first + 100, 250))
            ]
            more = {"x-next-token": str(first + 100)} if first < 200 else {}
            exchange.reply(200, items, more)

        fake.on("GET", "/v2/sandboxes", page)
        yield fake


class _Unheard:
    """A request to create whose answer nobody hears."""

    def __init__(self, body: Any) -> None:
        self.request = self
        self.headers: dict[str, str] = {}
        self._body = body

    def json(self) -> Any:
        return self._body

    def reply(self, *_: object) -> None:
        """Drop it."""


def _run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(argv))
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_all_of_many_sandboxes_are_listed_and_ended(
    many: FakePlatform, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the size of a page; one that has ended by itself is no error."""
    many.killed.append("sb7")
    status, out, _ = _run(capsys, "sandboxes", "list")
    assert status == 0
    assert len(out.splitlines()) == 251

    status, out, _ = _run(capsys, "sandboxes", "kill", "--all")
    assert status == 0
    assert many.alive == []
    assert len(out.splitlines()) == 249


def test_one_that_is_missing_does_not_keep_the_others(
    many: FakePlatform, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each that is missing is named; the status is 4."""
    argv = ("sandboxes", "kill", "sb1", "nobody1", "sb2", "nobody2", "sb3")
    status, out, err = _run(capsys, *argv)

    assert (status, out.split()) == (4, ["sb1", "sb2", "sb3"])
    assert "nobody1" in err
    assert "nobody2" in err


def test_one_that_cannot_be_done_does_not_keep_the_others(
    many: FakePlatform, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one that is paused already; the status is that of the last error."""
    refusal = {"code": 409, "message": "sb2 is paused"}
    many.on("POST", "/sandboxes/sb./pause", lambda exchange: exchange.reply(204))
    many.on(
        "POST", "/sandboxes/sb2/pause", lambda exchange: exchange.reply(409, refusal)
    )
    argv = ("sandboxes", "pause", "nobody", "sb1", "sb2", "sb3")
    status, out, err = _run(capsys, *argv)

    assert (status, out.split()) == (2, ["sb1", "sb3"])
    assert "nobody" in err
    assert "sb2 is paused" in err


def test_what_would_fail_with_each_is_told_once(
    many: FakePlatform, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that is not known is none for the next one either."""
    many.on("DELETE", "/sandboxes/.*", lambda exchange: exchange.reply(401))
    status, out, err = _run(capsys, "sandboxes", "kill", "sb1", "sb2")

    assert (status, out, err.count("error: ")) == (5, "", 1)
