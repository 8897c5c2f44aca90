"""What a platform holds whether it runs or not: its data directory, store, templates."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from ppio_agent.exceptions import WireError
from ppio_agent.sandbox.life.ended import SANDBOX_ROW
from ppio_agent.sandbox.life.rows import SandboxRow
from ppio_agent.sandbox.templates.blobs import BlobStore
from ppio_agent.sandbox.templates.environments import Environments
from ppio_agent.sandbox.templates.packing import host_limits
from ppio_agent.sandbox.templates.records import Build
from ppio_agent.sandbox.templates.store import Templates
from ppio_agent.storage import DocumentStore, open_store

from .datadir import DataDir

__all__ = ["builds_in_use", "make_id", "open_data", "open_templates"]

_ID_LETTERS: Final = string.ascii_lowercase + string.digits


def make_id() -> str:
    """Return an id for a template or a sandbox, which cannot be guessed."""
    # Ids are parts of public host names behind which no key is asked for.
    return "".join(secrets.choice(_ID_LETTERS) for _ in range(20))


@contextmanager
def open_data(data: DataDir) -> Iterator[DocumentStore]:
    """Open the store of a data directory, which nobody else uses meanwhile.

    Raises:
        PlatformAlreadyRunningError: Somebody else uses it.

    Blocking: as `DataDir.acquire`.
    """
    data.acquire()
    try:
        with closing(open_store(f"sqlite:///{data.database}")) as store:
            yield store
    finally:
        data.release()


def open_templates(
    data: DataDir,
    store: DocumentStore,
    *,
    wheels_only: bool,
    id_factory: Callable[[], str] = make_id,
    find: Callable[[str], Path | None] = lambda _ref: None,
) -> Templates:
    """Return the templates in a data directory.

    Args:
        data: The directory.
        store: Its store.
        wheels_only: Whether nothing that is installed for an agent may run code. Only
            in the process backend may agents do what their installer does.
        id_factory: As of `Templates`.
        find: As of `Templates`.
    """
    return Templates(
        store,
        BlobStore(data.blobs),
        Environments(data.environments, wheels_only=wheels_only),
        host=host_limits(),
        id_factory=id_factory,
        find=find,
        in_use=lambda: builds_in_use(store),
    )


def builds_in_use(store: DocumentStore) -> dict[str, Build]:
    """Return the builds that sandboxes were made from, by their ids.

    Those of sandboxes that a crash left are among them: a next platform takes them up.
    """
    found = {}
    for document in store.scan(SANDBOX_ROW):
        with suppress(WireError):  # of another version: nobody takes that one up
            build = SandboxRow.parse(document.body).build
            found[build.id] = build
    return found
