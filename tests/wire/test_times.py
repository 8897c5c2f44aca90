"""Instants on the wire."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppio_agent.exceptions import WireError
from ppio_agent.wire.times import format_time, parse_time

UTC = timezone.utc
MILLISECOND = timedelta(milliseconds=1)
OFFSETS = st.integers(-23 * 60, 23 * 60).map(lambda m: timezone(timedelta(minutes=m)))


@settings(deadline=None)
@given(
    instant=st.datetimes(
        datetime(1, 1, 2),  # noqa: DTZ001 - hypothesis wants naive bounds
        datetime(9999, 12, 30),  # noqa: DTZ001
        timezones=OFFSETS,
    )
)
def test_an_instant_comes_back_to_the_millisecond(instant: datetime) -> None:
    """Whatever its zone, it is sent in UTC and read as aware UTC."""
    text = format_time(instant)
    assert len(text) == 24
    read = parse_time(text)
    assert read.tzinfo is UTC
    assert timedelta(0) <= instant - read < MILLISECOND


def test_a_naive_instant_counts_as_utc() -> None:
    """Both ways."""
    naive = datetime(2026, 1, 2, 3, 4, 5, 678999)  # noqa: DTZ001 - on purpose
    assert format_time(naive) == "2026-01-02T03:04:05.678Z"
    assert parse_time("2026-01-02T03:04:05") == datetime(2026, 1, 2, 3, 4, 5, 0, UTC)


def test_early_years_have_four_digits() -> None:
    """As RFC 3339 demands."""
    assert format_time(datetime(33, 4, 3, tzinfo=UTC)) == "0033-04-03T00:00:00.000Z"


@pytest.mark.parametrize(
    ("text", "micros", "hour"),
    [
        ("2026-01-02T03:04:05Z", 0, 3),
        ("2026-01-02T03:04:05.5Z", 500_000, 3),
        ("2026-01-02T03:04:05.123456789Z", 123_456, 3),
        ("2026-01-02t03:04:05.000001z", 1, 3),
        ("2026-01-02 03:04:05.1 +00:00", 100_000, 3),
        ("2026-01-02T05:04:05+02:00", 0, 3),
        ("2026-01-01T22:04:05-0500", 0, 3),
        ("2026-01-02T03:04:05-00:00", 0, 3),
    ],
)
def test_the_forms_of_other_servers_are_read(text: str, micros: int, hour: int) -> None:
    """Up to nine digits of a fraction, cut to microseconds; any offset."""
    assert parse_time(text) == datetime(2026, 1, 2, hour, 4, 5, micros, UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-01-02",
        "2026-01-02T03:04",
        "2026-01-02T03:04:05.1234567890Z",
        "2026-01-02T03:04:05.Z",
        "2026-13-02T03:04:05Z",
        "2026-02-30T03:04:05Z",
        "2026-01-02T25:04:05Z",
        "2026-01-02T03:04:05+24:00",
        "2026-01-02T03:04:05+01:60",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "2026-01-02T03:04:05Z\n",
        "२०२६-01-02T03:04:05Z",
        "1767323045",
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    """One error, whatever is wrong, and it does not repeat the text."""
    with pytest.raises(WireError) as caught:
        parse_time(text)
    assert str(caught.value) == "expected an RFC 3339 time"


@settings(deadline=None)
@given(text=st.text("0123456789-:.TZ+ ", max_size=30) | st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    """What a server sends never brings down its reader."""
    with contextlib.suppress(WireError):
        assert parse_time(text).tzinfo is UTC
