"""Nonces in a Redis server, shared by any number of machines. Needs the extra `redis`."""

from __future__ import annotations

import math

from ppio_agent.exceptions import ConfigurationError
from ppio_agent.wire.signing import MAX_NONCES, too_many_nonces

from .outage import PATIENCE, Outage

__all__ = ["RedisNonceStore"]

_PREFIX = "ppio:nonces:"
_NEW = 0

# One sorted set a key, whose scores are the instants of forgetting in ms. The server's
# clock is the only one that all processes share.
_CLAIM = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)
if redis.call('ZSCORE', KEYS[1], ARGV[1]) then
    return -1
end
if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[3]) then
    local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
    return math.max(1, oldest[2] - now)
end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[2] + 1000)
return 0
"""


class RedisNonceStore:
    """Remembers nonces in the server at `url`, which need not be up yet.

    It may be made before a fork.

    Args:
        url: ``redis://[[user]:password@]host[:port][/db]``, ``rediss://…`` with TLS, or
            ``unix://<path>``.
        limit: Most nonces for one key.

    Raises:
        ConfigurationError: The extra `redis` is missing, or the URL cannot be used.

    Thread safety: thread-safe.
    """

    def __init__(self, url: str, *, limit: int = MAX_NONCES) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise ConfigurationError(
                "nonces in Redis need its client: pip install 'ppio-agent[redis]'"
            ) from error
        try:
            self._redis = redis.Redis.from_url(
                url,
                socket_timeout=PATIENCE,
                socket_connect_timeout=PATIENCE,
                # Asked again after a lost answer, the server would say "seen".
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError:  # whose text and context may hold the password
            raise ConfigurationError(
                "the redis:// URL of the nonces cannot be used: check port and options"
            ) from None
        self._limit = limit
        self._outage = Outage(redis.RedisError)
        self._claim = self._redis.register_script(_CLAIM)

    def claim(self, key_id: str, nonce: str, *, keep: float) -> bool:
        """Remember a nonce; see `NonceStore.claim`.

        Blocking: until the server answers, for 1 s at most, and 1 s to connect; for a
        second after it did not, there is no waiting.
        """
        with self._outage.guard():
            said = int(
                self._claim(
                    keys=[_PREFIX + key_id],
                    args=[nonce, math.ceil(keep * 1000), self._limit],
                )
            )
        if said > 0:
            raise too_many_nonces(said / 1000)
        return said == _NEW

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._redis.close()
