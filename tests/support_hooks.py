"""A plug-in that keeps what it is told, for tests of several packages."""

from __future__ import annotations

import threading
from typing import Any

from ppio_agent.hooks import hookimpl

__all__ = ["Listener"]


class Listener:
    """Keeps every record of a client, and the threads that brought them."""

    def __init__(self) -> None:
        self.records: list[Any] = []
        self.threads: set[int] = set()

    def _keep(self, record: object) -> None:
        self.records.append(record)
        self.threads.add(threading.get_ident())

    @hookimpl
    def ppio_client_request(self, record: object) -> None:
        self._keep(record)

    @hookimpl
    def ppio_client_response(self, record: object) -> None:
        self._keep(record)

    @hookimpl
    def ppio_client_retry(self, record: object) -> None:
        self._keep(record)

    @hookimpl
    def ppio_client_stream_event(self, record: object) -> None:
        self._keep(record)

    @hookimpl
    def ppio_client_session_changed(self, record: object) -> None:
        self._keep(record)

    def of(self, cls: type[Any]) -> list[Any]:
        """Return the records of one kind."""
        return [record for record in self.records if isinstance(record, cls)]
