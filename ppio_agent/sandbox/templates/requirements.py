"""Whether what an agent needs is installed. By default that is only looked at."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import metadata
from typing import Final

__all__ = ["missing_distributions"]

_NAME: Final = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(.*)")


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def missing_distributions(
    requirements: str, *, installed: Callable[[str], bool] = _is_installed
) -> tuple[str, ...]:
    """Return the names in a `requirements.txt` that are not installed here.

    Versions are not compared, and lines with options, URLs or markers are passed over:
    a wrong warning is worse than none.
    """
    found = []
    for line in requirements.splitlines():
        match = _NAME.match(line.strip())
        if match is None or ";" in match[2] or "://" in match[2] or "@" in match[2]:
            continue
        if not installed(match[1]):
            found.append(match[1])
    return tuple(dict.fromkeys(found))
