"""Ports for what must be kept, and the stores behind them.

The only package that imports `sqlite3`, and only when such a store is opened.
"""

from __future__ import annotations

from .documents import Change, Delete, Document, DocumentStore, Put, open_store

__all__ = ["Change", "Delete", "Document", "DocumentStore", "Put", "open_store"]
