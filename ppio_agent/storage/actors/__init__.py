"""Where actors live: the port, and the stores behind it."""

from __future__ import annotations

from .port import IActorStateStorage, IActorStore

__all__ = ["IActorStateStorage", "IActorStore", "open_actor_store"]


def open_actor_store(url: str) -> IActorStateStorage:
    """Open the store of actors that `url` names.

    Args:
        url: ``memory://`` (gone with the process), ``sqlite:///<path>`` (with
            ``?sync=full`` also safe from a loss of power), ``postgresql+psycopg://…``
            (extra `postgres`), ``redis://…`` (extra `redis`), or what a plug-in knows
            (`ppio_open_store`).

    Raises:
        ConfigurationError: The scheme is unknown, the URL is incomplete, or the extra
            is not installed.
    """
    from .opening import opened

    return opened(url)
