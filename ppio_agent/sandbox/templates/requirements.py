"""What an agent needs beside itself: looked at by default, installed when asked to. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Final

__all__ = [
    "REQUIREMENTS",
    "missing_distributions",
    "pip_environment",
    "unsafe_lines",
]

REQUIREMENTS: Final = "requirements.txt"

_NAME: Final = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*(.*)")
# What follows a name: extras, then versions or nothing, then perhaps a marker.
_FROM_INDEX: Final = re.compile(
    r"(?!.*\s-)\s*(?:\[[^]]*\])?\s*(?:[(<>=!~][^@/\\]*)?(?:;[^\\]*)?"
)
_COMMENT: Final = re.compile(r"(?:^|\s)#.*")
_PASSED: Final = re.compile(
    r"PIP_.*|PATH|HOME|LANG|LC_.*|TMPDIR|NETRC|XDG_(?:CONFIG|CACHE)_HOME"
    r"|(?i:https?_proxy|all_proxy|no_proxy)"
    r"|SSL_CERT_(?:FILE|DIR)|REQUESTS_CA_BUNDLE"
)
# These would have pip install elsewhere.
_REFUSED: Final = frozenset({"PIP_PREFIX", "PIP_ROOT", "PIP_TARGET", "PIP_USER"})


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


def unsafe_lines(requirements: str) -> list[tuple[str, int, str]]:
    """Return the lines of a `requirements.txt` that may run code when installed.

    Those are all but names with versions: options, addresses and paths may each lead
    to sources, which are built by running them.

    Returns:
        Problems, as of a manifest.
    """
    return [
        (REQUIREMENTS, number, "must be a name with versions: no option, URL or path")
        for number, line in enumerate(requirements.splitlines(), start=1)
        if (text := _COMMENT.sub("", line).strip()) and not _is_plain(text)
    ]


def _is_plain(text: str) -> bool:
    match = _NAME.match(text)
    return match is not None and _FROM_INDEX.fullmatch(match[2]) is not None


def pip_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what of an environment pip gets: its settings, proxies and certificates.

    No secret of the platform, and nothing that would change where it installs.
    """
    return {
        name: value
        for name, value in environ.items()
        if _PASSED.fullmatch(name) and name not in _REFUSED
    }
