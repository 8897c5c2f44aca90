"""The port for small JSON documents: values, contract and the way to open a store.

A document has a kind, an id and a JSON object. Its version counts its writes, so that
a writer may demand that nobody else wrote in between. A `write` of several changes is
one transaction: all of them are kept, or none is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from attrs import field, frozen, validators

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.wire.json import Json

__all__ = [
    "MEMORY_URL",
    "Change",
    "Delete",
    "Document",
    "DocumentStore",
    "Put",
    "open_store",
    "sqlite_path",
]

MEMORY_URL = "memory://"
_SQLITE = "sqlite:///"


@frozen
class Document:
    """One document as it was read.

    Attributes:
        kind: What it describes, such as `template`.
        id: Its name within the kind.
        version: 1 after the first write, one more after each further one.
        body: Its JSON object; a copy that belongs to the reader.
    """

    kind: str
    id: str
    version: int
    body: dict[str, Json] = field(repr=False)


@frozen
class Put:
    """Write a document whole.

    Args:
        kind: Kind of the document.
        id: Its id within the kind.
        body: The JSON object to be kept.
        expect: Version it must have now; 0: it must not exist; None: whatever it is.
    """

    kind: str
    id: str
    body: Mapping[str, Json] = field(repr=False)
    expect: int | None = field(
        default=None, kw_only=True, validator=validators.optional(validators.ge(0))
    )


@frozen
class Delete:
    """Remove a document; one that does not exist is no error.

    Args:
        kind: Kind of the document.
        id: Its id within the kind.
        expect: Version it must have now; None: whatever it is.
    """

    kind: str
    id: str
    expect: int | None = field(
        default=None, kw_only=True, validator=validators.optional(validators.ge(1))
    )


Change = Put | Delete


class DocumentStore(Protocol):
    """Keeps documents.

    Any method may raise `OSError` where a disk is full or fails; nothing was changed.

    Thread safety: every method may be called from any thread.
    """

    def get(self, kind: str, id: str, /) -> Document | None:
        """Return the document, or None if there is none."""

    def scan(self, kind: str, /) -> tuple[Document, ...]:
        """Return every document of a kind, in the order of their ids."""

    def write(self, *changes: Change) -> None:
        """Make all changes at once, in their order; they last when this returns.

        Raises:
            ConflictError: A document has not the expected version; nothing was changed.
            SerializationError: A body has no JSON form; nothing was changed.
        """

    def close(self) -> None:
        """Let go of files. Idempotent; nothing else may be called afterwards."""


def open_store(url: str) -> DocumentStore:
    """Open the store that `url` names.

    Args:
        url: `memory://` (gone with the process), or `sqlite:///<path>` (a file that
            is made when absent; an absolute path gives four slashes).

    Raises:
        ConfigurationError: The scheme is unknown, or the path is missing.
    """
    if url == MEMORY_URL:
        from .memory import MemoryDocumentStore

        return MemoryDocumentStore()
    path = sqlite_path(url)
    if path is not None:
        from .sqlite import SqliteDocumentStore

        return SqliteDocumentStore(path)
    scheme = url.partition(":")[0]
    raise ConfigurationError(
        f"cannot open a store of scheme {scheme!r}: use memory:// or sqlite:///<path>"
    )


def sqlite_path(url: str) -> str | None:
    """Return the path in a URL ``sqlite:///<path>``; None if it is none.

    Example:
        >>> sqlite_path("sqlite:////var/lib/x.db"), sqlite_path("sqlite:///")
        ('/var/lib/x.db', None)
    """
    path = url.removeprefix(_SQLITE)
    return path if path and path != url else None
