"""Which store of actors a URL names."""

from __future__ import annotations

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.storage.documents import MEMORY_URL

from .port import IActorStore

__all__ = ["opened"]


def opened(url: str) -> IActorStore:
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
    raise ConfigurationError(
        f"cannot open a store of actors of scheme {scheme!r}: use memory://,"
        " sqlite:///<path>, postgresql+psycopg://… or redis://…"
    )
