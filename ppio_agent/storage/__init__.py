"""Ports for what must be kept, and the stores behind them.

The only package that imports `sqlite3` and `redis`, and only when such a store is opened.
"""

from __future__ import annotations

from .documents import Change, Delete, Document, DocumentStore, Put, open_store
from .nonces import open_nonces

__all__ = [
    "Change",
    "Delete",
    "Document",
    "DocumentStore",
    "Put",
    "open_nonces",
    "open_store",
]
