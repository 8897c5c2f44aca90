"""Which store of actors a URL names."""

from __future__ import annotations

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.hooks import Hooks
from ppio_agent.storage.documents import MEMORY_URL

from .port import IActorStateStorage

__all__ = ["opened"]


def opened(url: str) -> IActorStateStorage:
    """Open the store; see `open_actor_store`."""
    scheme = url.partition(":")[0]
    if url == MEMORY_URL:
        from .memory import InMemoryStateStorage

        return InMemoryStateStorage()
    if scheme == "sqlite":
        from .sqlite import SqliteActorStore

        return SqliteActorStore.from_url(url)
    if scheme.partition("+")[0] == "postgresql":
        from .postgres import PostgresActorStore

        return PostgresActorStore(url)
    if scheme in {"redis", "rediss"}:
        from .redis import RedisActorStore

        return RedisActorStore(url)
    store: IActorStateStorage | None = Hooks.load().open_store("actor", url)
    if store is not None:
        return store
    raise ConfigurationError(
        f"cannot open a store of actors of scheme {scheme!r}: use memory://,"
        " sqlite:///<path>, postgresql+psycopg://… or redis://…, or install a plug-in"
        " that knows it"
    )
