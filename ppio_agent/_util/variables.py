"""Variables of the environment that look like settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

__all__ = ["unknown_variables"]


def unknown_variables(
    environ: Mapping[str, str], prefix: str, known: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Yield variables that look like settings and are none, and what may be meant.

    Args:
        environ: The environment.
        prefix: What the names of settings begin with.
        known: The names of the settings, in lower case and without it.

    Yields:
        The name, and a question to follow it: `""` if none of the settings is like it.
    """
    settings = [name.upper() for name in known]
    asked = (name[len(prefix) :] for name in environ if name.startswith(prefix))
    for name in sorted(name for name in asked if name not in settings):
        from difflib import get_close_matches  # which a right environment does not need

        near = get_close_matches(name.upper(), settings, n=1)
        yield prefix + name, f": is {prefix}{near[0]} meant?" if near else ""
