"""A bare loop: one value of 1 KB and one commit each, on a connection of its own."""

from __future__ import annotations

import sqlite3
import threading
from typing import Any


class System:
    def __init__(self, options: dict[str, Any]) -> None:
        path = f"{options['folder']}/bare.db"
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA synchronous = {options['sync']}")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS state (key INTEGER PRIMARY KEY, value BLOB)"
        )
        self._value = b"x" * 1000
        self._lock = threading.Lock()

    def start(self, actors: int) -> None:
        pass

    def ask(self, number: int) -> None:
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(
                "INSERT OR REPLACE INTO state VALUES (?, ?)", (number, self._value)
            )
            self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()
