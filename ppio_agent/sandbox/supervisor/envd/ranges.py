"""Which bytes of a file a `Range` header asks for. Pure.

Source: RFC 9110 section 14.
"""

from __future__ import annotations

import re

__all__ = ["parse_range"]


def parse_range(header: str | None, size: int) -> range | None:
    """Return the bytes asked for, or None for all of them.

    Headers that ask for several ranges, or are not understood, ask for all.

    Args:
        header: The header, if there is one.
        size: How many bytes there are.

    Raises:
        ValueError: There are no such bytes.
    """
    found = re.fullmatch(r"bytes=([0-9]{0,18})-([0-9]{0,18})", (header or "").strip())
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if first and last and int(first) > int(last):
        return None
    if not first:
        start, stop = max(0, size - int(last)), size
    else:
        start, stop = int(first), min(int(last or size) + 1, size)
    if start >= stop:
        raise ValueError(f"the file has {size} bytes")
    return range(start, stop)
