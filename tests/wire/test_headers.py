"""Names and forms that both sides agree on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ppio_agent.wire.headers import (
    Accept,
    sandbox_key,
    valid_entrypoint,
    valid_id,
    valid_idempotency_key,
    valid_session_id,
)


@pytest.mark.parametrize(
    ("valid", "longest"), [(valid_id, 128), (valid_session_id, 256)]
)
def test_ids_are_short_words(valid: Callable[[str], bool], longest: int) -> None:
    """Letters, digits and `._:-`: safe in a header, a URL, a log and a file name."""
    for good in ("a", "Z9", "a.b_c:d-e", "0" * longest):
        assert valid(good), good
    for bad in (
        "",
        "0" * (longest + 1),
        "a b",
        "a/b",
        "é",
        "a\n",
        "\na",
        "a\0",
        "٣",
        "%",
    ):
        assert not valid(bad), bad


def test_an_idempotency_key_is_visible_ascii() -> None:
    """1 to 255 characters."""
    for good in ("a", "!", "~", '"key"', "k" * 255):
        assert valid_idempotency_key(good), good
    for bad in ("", "k" * 256, "a b", "a\t", "a\n", "\x7f", "é"):
        assert not valid_idempotency_key(bad), bad


@pytest.mark.parametrize(
    "path", ["a.py", "src/app.py", "./a.py", "a-b/c_d.1.py", "x..py"]
)
def test_a_script_inside_its_folder_is_an_entrypoint(path: str) -> None:
    """Relative, with plain characters."""
    assert valid_entrypoint(path)


@pytest.mark.parametrize(
    "path",
    [
        "", ".py", "a.pyc", "a.PY", "a", "/a.py", "../a.py", "a/../b.py", "a/..py/../b.py",
        "a.py; rm -rf x", "a b.py", "$(x).py", "a\n.py", "a.py\n", "-c.py", "é.py", "a\\b.py",
    ],
)  # fmt: skip
def test_anything_else_is_no_entrypoint(path: str) -> None:
    """Nothing that a shell, Python's options or a parent folder would make of it."""
    assert not valid_entrypoint(path)


def test_a_sandbox_has_a_plain_and_a_composite_id() -> None:
    """What comes after the first dash names who serves it, not another sandbox."""
    assert sandbox_key("abc") == sandbox_key("abc-client-1") == "abc"
    assert sandbox_key("abc-1") == sandbox_key("abc")
    assert sandbox_key("abc-1") != sandbox_key("abd-1")


JSON_ONLY = Accept(sse=0.0, json=1.0, html=0.0)
CLIENT = "application/json, text/event-stream;q=0.9"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"


@pytest.mark.parametrize(
    ("value", "sse", "json", "html"),
    [
        (None, 0, 1, 0),
        ("", 0, 1, 0),
        (" , ", 0, 1, 0),
        ("*/*", 0, 1, 0),
        ("application/*", 0, 1, 0),
        ("application/json", 0, 1, 0),
        ("text/event-stream", 1, 0, 0),
        ("Text/Event-Stream ; Q=0.5", 0.5, 0, 0),
        ("text/event-stream;q=0", 0, 0, 0),
        ("text/event-stream;q=0, */*", 0, 1, 0),
        ("text/*", 0, 0, 0),
        ("application/json;q=0, */*", 0, 0, 0),
        ("application/json;q=0.2, application/*;q=0.9, */*", 0, 0.2, 0),
        ("application/*;q=0.3, */*", 0, 0.3, 0),
        (CLIENT, 0.9, 1, 0),
        (BROWSER, 0, 0.8, 1),
        ("text/event-stream;charset=utf-8;q=0.7", 0.7, 0, 0),
        ("text/event-stream;q=0.1, text/event-stream;q=0.4", 0.4, 0, 0),
        ("text/event-stream;q=high", 0, 0, 0),
        ("text/event-stream;q=", 0, 0, 0),
        ("text/event-stream;q=2", 0, 0, 0),
        ("text/event-stream;q=-1", 0, 0, 0),
        ("text/event-stream;q=nan", 0, 0, 0),
        ("text/event-stream;q=1e-1", 0, 0, 0),
        ("text/event-stream;q=.2", 0.2, 0, 0),
        ('text/html;a=", text/event-stream"', 0, 0, 1),
        ("text/event-stream;level=1", 1, 0, 0),
        ("x" * 2000 + ",text/event-stream", 0, 0, 0),
    ],
)
def test_accept_says_how_much_of_what_is_wanted(
    value: str | None, sse: float, json: float, html: float
) -> None:
    """The most exact name decides; what cannot be read is not wanted."""
    assert Accept.parse(value) == Accept(sse=sse, json=json, html=html)


@pytest.mark.parametrize(
    ("value", "names_sse", "envelope", "prefers_html"),
    [
        (None, False, True, False),
        ("*/*", False, True, False),
        ("text/html", False, True, True),
        (BROWSER, False, True, True),
        ("text/html;q=0.5, application/json", False, True, False),
        (CLIENT, True, True, False),
        ("text/event-stream", True, False, False),
        ("text/event-stream, */*;q=0.5", True, False, False),
        ("text/event-stream, */*", True, True, False),
        ("text/event-stream;q=0, */*", False, True, False),
    ],
)
def test_accept_decides_the_form_of_the_answer(
    value: str | None, names_sse: bool, envelope: bool, prefers_html: bool
) -> None:
    """The full dialect only where it is named; an envelope if JSON is no worse."""
    accept = Accept.parse(value)
    assert accept.names_sse is names_sse
    assert accept.envelope is envelope
    assert accept.prefers_html is prefers_html
