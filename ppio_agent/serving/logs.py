"""Logs of an app: the ids in each record, and what `run()` does about logging."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ppio_agent.agent import current_context

from .config import AgentConfig

if TYPE_CHECKING:
    from ppio_agent.web.logs import ContextFilter

__all__ = ["log_filter", "logging_of_run"]

_log = logging.getLogger(__name__)

_IDS = ("request_id", "invocation_id", "session_id")


def log_filter() -> ContextFilter:
    """Return a filter that gives log records the ids of their invocation."""
    from ppio_agent.web.logs import ContextFilter

    return ContextFilter(
        ppio_invocation_id=lambda: _of_context("invocation_id"),
        ppio_session_id=lambda: _of_context("session_id"),
    )


def _of_context(name: str) -> str | None:
    found: str | None = getattr(current_context(), name, None)
    return found


class _TextFormatter(logging.Formatter):
    """A line for people, with the ids there are at its end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        found = ((name, getattr(record, f"ppio_{name}", None)) for name in _IDS)
        ids = " ".join(f"{name}={value}" for name, value in found if value)
        line = super().formatMessage(record)
        return f"{line} [{ids}]" if ids else line


@contextlib.contextmanager
def logging_of_run(config: AgentConfig) -> Iterator[None]:
    """Set up logging as the settings say, for as long as the app is run.

    The handlers of a program that has configured logging get the ids and nothing else;
    without any, and if `log_format` is set, there is one that writes to stderr. A
    person at a terminal gets text without having asked for it.
    """
    package = logging.getLogger("ppio_agent")
    package_level = package.level
    package.setLevel(config.log_level)
    root = logging.getLogger()
    log_format = config.log_format or _unasked()
    own = None if root.handlers else _handler(log_format)
    level = root.level
    if own is not None:
        root.addHandler(own)
        root.setLevel(config.log_level)
    elif config.log_format is not None:
        _log.warning(
            "log_format is not used: the program has its own log handlers; give them a"
            " JsonLogFormatter"
        )
    handlers, ids = tuple(root.handlers), log_filter()
    for handler in handlers:
        handler.addFilter(ids)
    try:
        yield
    finally:
        package.setLevel(package_level)
        for handler in handlers:
            handler.removeFilter(ids)
        if own is not None:
            root.removeHandler(own)
            root.setLevel(level)


def _unasked() -> str | None:
    """Return the format that a program gets which has set up nothing."""
    package = logging.getLogger("ppio_agent")
    if any(not isinstance(h, logging.NullHandler) for h in package.handlers):
        return None
    # There is no stderr in a program without a console.
    return "text" if sys.stderr is not None and sys.stderr.isatty() else None


def _handler(log_format: str | None) -> logging.Handler | None:
    if log_format is None:
        return None
    handler = logging.StreamHandler()
    if log_format == "json":
        from ppio_agent.web.logs import JsonLogFormatter

        handler.setFormatter(JsonLogFormatter())
    else:
        handler.setFormatter(_TextFormatter())
    return handler
