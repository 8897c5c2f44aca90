"""Documents in memory, for tests and for whatever need not outlive the process."""

from __future__ import annotations

import threading

from ppio_agent.exceptions import ConflictError
from ppio_agent.wire.json import decode_json, encode_json

from .documents import Change, Document, Put

__all__ = ["MemoryDocumentStore"]

_Key = tuple[str, str]


class MemoryDocumentStore:
    """Keeps the encoded JSON, so that nothing is shared with readers or writers.

    Thread safety: thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # Guards _rows.
        self._rows: dict[_Key, tuple[int, bytes]] = {}

    def get(self, kind: str, id: str, /) -> Document | None:
        """Return the document, or None if there is none."""
        with self._lock:
            row = self._rows.get((kind, id))
        return None if row is None else Document(kind, id, row[0], decode_json(row[1]))

    def scan(self, kind: str, /) -> tuple[Document, ...]:
        """Return every document of a kind, in the order of their ids."""
        with self._lock:
            rows = sorted(
                (key, row) for key, row in self._rows.items() if key[0] == kind
            )
        return tuple(Document(*key, row[0], decode_json(row[1])) for key, row in rows)

    def write(self, *changes: Change) -> None:
        """Make all changes at once; see `DocumentStore.write`."""
        encoded = [encode_json(c.body) if isinstance(c, Put) else None for c in changes]
        with self._lock:
            # Applied to a view first: a later change sees the earlier ones, and a
            # conflict leaves no trace.
            view: dict[_Key, tuple[int, bytes] | None] = {}
            for change, body in zip(changes, encoded, strict=True):
                key = (change.kind, change.id)
                row = view[key] if key in view else self._rows.get(key)
                version = row[0] if row else 0
                if change.expect not in (None, version):
                    raise ConflictError(
                        f"{change.kind} {change.id} has version {version},"
                        f" not {change.expect}: read it again"
                    )
                view[key] = None if body is None else (version + 1, body)
            for key, row in view.items():
                if row is None:
                    self._rows.pop(key, None)
                else:
                    self._rows[key] = row

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            self._rows.clear()
