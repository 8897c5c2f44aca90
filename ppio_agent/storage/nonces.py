"""The stores of nonces, opened by URL; the port is `ppio_agent.wire.signing.NonceStore`."""

from __future__ import annotations

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.hooks import Hooks
from ppio_agent.wire.signing import MemoryNonceStore, NonceStore

from .documents import MEMORY_URL, sqlite_path

__all__ = ["open_nonces"]

_REDIS = ("redis://", "rediss://", "unix://")


def open_nonces(url: str) -> NonceStore:
    """Open the store of nonces that `url` names.

    Args:
        url: `memory://` (for one process), `sqlite:///<path>` (for the processes of one
            machine; an absolute path gives four slashes), or `redis://…`, `rediss://…`
            (TLS), `unix://<path>` (a Redis server, for any number of machines).

    Raises:
        ConfigurationError: The URL cannot be used, no plug-in (`ppio_open_store`) knows
            its scheme, or the extra `redis` is missing.
    """
    if url == MEMORY_URL:
        return MemoryNonceStore()
    path = sqlite_path(url)
    if path is not None:
        from .sqlite_nonces import SqliteNonceStore

        return SqliteNonceStore(path)
    if url.startswith(_REDIS):
        from .redis_nonces import RedisNonceStore

        return RedisNonceStore(url)
    store: NonceStore | None = Hooks.load().open_store("nonce", url)
    if store is not None:
        return store
    # The URL may hold a password, so that only its scheme is told.
    raise ConfigurationError(
        f"cannot open nonces of scheme {url.partition(':')[0]!r}: use memory://,"
        " sqlite:///<path> or redis://<host>, or install a plug-in that knows it"
    )
