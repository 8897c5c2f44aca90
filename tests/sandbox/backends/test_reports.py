"""What a supervisor says is believed only in the right shape and size."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppio_agent.sandbox.backends.base import AgentStatus, Usage
from ppio_agent.sandbox.backends.reports import (
    parse_agent,
    parse_error,
    parse_over,
    parse_usage,
)
from ppio_agent.sandbox.supervisor.channel import ChannelError

AGENT = {
    "phase": "exited",
    "exit_code": 1,
    "signal": None,
    "started_at": 1.5,
    "ready_at": None,
    "log_tail": "bye",
    "pid": None,
}
values = st.none() | st.booleans() | st.integers() | st.floats() | st.text()


def test_a_whole_report_becomes_a_status() -> None:
    """Seconds become aware instants."""
    assert AgentStatus(
        phase="exited",
        exit_code=1,
        started_at=datetime.fromtimestamp(1.5, timezone.utc),
        log_tail="bye",
    ) == parse_agent(AGENT)


def test_a_long_tail_is_cut() -> None:
    """To its last 4 KiB."""
    assert parse_agent({**AGENT, "log_tail": "x" + "y" * 4096}).log_tail == "y" * 4096


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("phase", "none"),
        ("phase", 1),
        ("exit_code", True),
        ("exit_code", -1),
        ("pid", 2**60),
        ("started_at", "now"),
        ("started_at", float("nan")),
        ("ready_at", 1e15),
        ("log_tail", None),
    ],
)
def test_a_wrong_field_is_refused(key: str, value: Any) -> None:
    """By its name, without the value."""
    with pytest.raises(ChannelError):
        parse_agent({**AGENT, key: value})


@given(st.dictionaries(st.sampled_from([*AGENT, "cpu_seconds", "error"]), values))
def test_any_message_is_a_value_or_refused(message: dict[str, Any]) -> None:
    """Nothing a supervisor sends makes the platform fail otherwise."""
    for parse in (parse_agent, parse_usage, parse_error):
        try:
            parse(message)
        except ChannelError:
            continue


def test_usage_and_errors() -> None:
    """Absent figures are zero, an absent error is none, a long one is cut."""
    assert Usage(cpu_seconds=0.5, rss_bytes=7, processes=0) == parse_usage(
        {"cpu_seconds": 0.5, "rss_bytes": 7}
    )
    assert parse_error({}) == ""
    assert parse_error({"error": "x" * 900}) == "x" * 200


def test_what_a_sandbox_is_over_is_one_line_that_is_not_long() -> None:
    """It is for a log, in which a sandbox writes no lines of its own."""
    assert parse_over({"detail": "9 processes\nforged"}) == "9 processesforged"
    assert len(parse_over({"detail": "x" * 10_000})) == 200
    assert parse_over({}) == ""
