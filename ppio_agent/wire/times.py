"""Instants on the wire: RFC 3339, UTC, milliseconds, ``Z``."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

from ppio_agent.exceptions import WireError

__all__ = ["format_time", "parse_time"]

_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?\s?(Z|z|[+-]\d\d:?\d\d)?",
    re.ASCII,
)


def format_time(instant: datetime) -> str:
    """Return an instant as ``2026-01-02T03:04:05.678Z``; a naive one counts as UTC."""
    if instant.tzinfo is None:
        instant = instant.replace(tzinfo=timezone.utc)
    if instant.tzinfo is not timezone.utc:
        instant = instant.astimezone(timezone.utc)
    return f"{instant.isoformat('T', 'milliseconds')[:-6]}Z"  # without +00:00


def parse_time(text: str) -> datetime:
    """Return the aware UTC datetime of an RFC 3339 text.

    Fractions of up to nine digits are cut to microseconds; without an offset the text
    counts as UTC.

    Raises:
        WireError: Not such a text, or no such date.
    """
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise WireError("", "expected an RFC 3339 time")
    date, clock, fraction, zone = match.groups()
    micros = int((fraction or "0").ljust(6, "0")[:6])
    try:
        naive = datetime.fromisoformat(f"{date}T{clock}")
        instant = naive.replace(microsecond=micros, tzinfo=_zone(zone))
        return instant.astimezone(timezone.utc)
    except (ValueError, OverflowError):
        raise WireError("", "expected an RFC 3339 time") from None


def _zone(text: str | None) -> timezone:
    if text is None or text in "Zz":
        return timezone.utc
    hours, minutes = int(text[1:3]), int(text[-2:])
    if minutes > 59:
        raise ValueError(text)
    offset = timedelta(hours=hours, minutes=minutes)
    return timezone(-offset if text[0] == "-" else offset)
