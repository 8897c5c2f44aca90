"""Log records: the ids of their request, and their form as lines of JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from ppio_agent.wire.times import format_time

from .kit import current_request_id

__all__ = ["ContextFilter", "JsonLogFormatter"]

# What every record has; anything else was given to this one, by `extra` or a filter.
_COMMON = {*vars(logging.makeLogRecord({})), "asctime", "message", "taskName"}


class ContextFilter(logging.Filter):
    """Adds the request's id, and further ids, to each log record it sees.

    For a handler: a logger's own filters do not see the records of its children.

    Args:
        sources: Attribute name to a function that gives its present value, or None.

    Example:
        >>> record = logging.makeLogRecord({})
        >>> ContextFilter(ppio_session_id=lambda: "s1").filter(record)
        True
        >>> record.ppio_request_id, record.ppio_session_id
        (None, 's1')
    """

    def __init__(self, **sources: Callable[[], str | None]) -> None:
        super().__init__()
        self._sources = {"ppio_request_id": current_request_id.get, **sources}

    def filter(self, record: logging.LogRecord) -> bool:
        """Set the attributes that the record does not have itself; keep it."""
        for name, source in self._sources.items():
            if not hasattr(record, name):
                setattr(record, name, source())
        return True


class JsonLogFormatter(logging.Formatter):
    """Formats each record as one line: a JSON object.

    It has `time` (UTC), `level`, `logger` and `message`; the ids that a `ContextFilter`
    has added, as `request_id`, `invocation_id`, `session_id`; whatever was given as
    `extra`; and, if there was one, `exception` with its traceback. What is None is left
    out, and what JSON does not know is shown as its `repr`.

    Example:
        >>> record = logging.makeLogRecord({"msg": "hi", "created": 0, "user": "anna"})
        >>> JsonLogFormatter().format(record)[:51]
        '{"time": "1970-01-01T00:00:00.000Z", "level": "Leve'
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without an end of line in it."""
        created = datetime.fromtimestamp(record.created, timezone.utc)
        entry: dict[str, Any] = {
            "time": format_time(created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _COMMON and value is not None:
                entry.setdefault(name.removeprefix("ppio_"), value)
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = self.formatStack(record.stack_info)
        try:
            return json.dumps(entry, default=repr, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            # A NaN, a cycle, a key that is no text: the line must come all the same.
            return json.dumps({k: _shown(value) for k, value in entry.items()})


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)
