"""Log records: the ids in them, and their form as lines of JSON."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.web import RequestKit
from ppio_agent.web.logs import ContextFilter, JsonLogFormatter


def line(record: logging.LogRecord) -> dict[str, Any]:
    text = JsonLogFormatter().format(record)
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text, parse_constant=pytest.fail)
    return found


def record(message: str = "hi", *args: object, **extra: Any) -> logging.LogRecord:
    logger = logging.getLogger("agent")
    return logger.makeRecord(
        "agent", logging.INFO, __file__, 1, message, args, None, extra=extra
    )


def test_log_records_carry_the_ids(caplog: pytest.LogCaptureFixture) -> None:
    """A filter on a handler adds them to records of any logger."""
    ids = ContextFilter(ppio_session_id=lambda: "s1")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        logging.getLogger("somebody.elses").warning("working")
        start_response("200 OK", [])
        return []

    caplog.handler.addFilter(ids)
    try:
        RequestKit(app)({"HTTP_X_REQUEST_ID": "r7"}, lambda *_: None)
    finally:
        caplog.handler.removeFilter(ids)
    record = caplog.records[0].__dict__
    assert (record["ppio_request_id"], record["ppio_session_id"]) == ("r7", "s1")


def test_a_record_keeps_what_it_says_itself() -> None:
    """An explicit id is not overwritten."""
    record = logging.makeLogRecord({"ppio_request_id": "explicit"})
    assert ContextFilter().filter(record)
    assert record.__dict__["ppio_request_id"] == "explicit"


def test_a_record_is_one_object() -> None:
    """With the message put together, and nothing that is None."""
    made = record("%s of\n%d", "one", 2, user="anna", none=None)
    made.created = 1_700_000_000.25
    assert line(made) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "INFO",
        "logger": "agent",
        "message": "one of\n2",
        "user": "anna",
    }


def test_the_ids_have_short_names() -> None:
    """As the answers call them."""
    made = record()
    ContextFilter(ppio_invocation_id=lambda: "inv_1").filter(made)
    assert line(made)["invocation_id"] == "inv_1"
    assert "request_id" not in line(made)


def test_what_is_given_never_hides_what_is_said() -> None:
    """An `extra` of the name of one of our members is left out."""
    assert line(record(level="mine", time=0))["level"] == "INFO"


def test_an_exception_comes_with_its_traceback() -> None:
    """In one member, so that it stays one line."""
    try:
        raise OSError("full")
    except OSError:
        made = record()
        made.exc_info = sys.exc_info()
        made.stack_info = "Stack:\n  here"
    found = line(made)
    assert found["exception"].startswith("Traceback (most recent call last):\n")
    assert found["exception"].endswith("OSError: full")
    assert found["stack"] == "Stack:\n  here"


class Odd:
    def __repr__(self) -> str:
        return "<odd>"


def _cycle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Odd(), "<odd>"),
        ([Odd()], ["<odd>"]),
        (float("nan"), "nan"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        (_cycle(), "[[...]]"),
        ("\ud800", "\ud800"),
    ],
)
def test_whatever_is_given_makes_a_line(value: Any, shown: Any) -> None:
    """As JSON where that goes, as its repr where it does not."""
    assert line(record(value=value))["value"] == shown


_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=100)
@given(st.text(), st.dictionaries(st.text(max_size=5).map("x_".__add__), _values))
def test_every_line_is_json(message: str, extra: dict[str, Any]) -> None:
    """Whatever agents log."""
    made = logging.makeLogRecord({"msg": message, **extra})
    assert line(made)["message"] == message
