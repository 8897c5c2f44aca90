"""The way to a Redis server: scripts, several of them in one round trip, and hints."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

from ppio_agent._util.ids import new_id
from ppio_agent._util.threads import start_thread
from ppio_agent.exceptions import (
    ConfigurationError,
    InvalidActorIdError,
    ServiceUnavailableError,
)
from ppio_agent.wire.actors import ActorId

from .records import Hint, HintKind, Subscription

__all__ = ["Clock", "Command", "RedisHints", "RedisLink"]

_log = logging.getLogger(__name__)

_PATIENCE = 5.0  # seconds for an answer, and for a free connection
_MOST_CONNECTIONS = 64
_LISTEN = 0.5  # seconds between two looks whether hints are still wanted
_CLOSE_SECONDS = 5.0

Command = tuple[Any, ...]
"""A Redis command with its arguments."""


class RedisLink:
    """Connections to the server at a URL, made when they are needed.

    A command is never sent twice: whether the first was done is for the caller to find
    out.

    Args:
        url: ``redis://[[user]:password@]host[:port][/db]``, ``rediss://…`` with TLS, or
            ``unix://<path>``.
        scripts: By digest, those that are loaded whenever the server has not got them.

    Raises:
        ConfigurationError: The extra `redis` is missing, or the URL cannot be used.

    Thread safety: thread-safe.
    """

    def __init__(self, url: str, scripts: Mapping[str, str]) -> None:
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise ConfigurationError(
                "actors in Redis need its client: pip install 'ppio-agent[redis]'"
            ) from error
        try:
            pool = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=_MOST_CONNECTIONS,
                timeout=_PATIENCE,
                socket_timeout=_PATIENCE,
                socket_connect_timeout=_PATIENCE,
                retry=Retry(NoBackoff(), 0),
                protocol=2,  # for the same answers from all versions of the client
            )
        except ValueError:  # whose text and context may hold the password
            raise ConfigurationError(
                "the redis:// URL of the actors cannot be used: check port and options"
            ) from None
        self._error = redis.RedisError
        self._unknown_script = redis.exceptions.NoScriptError
        self._redis: Any = redis.Redis(connection_pool=pool)
        self._scripts = scripts

    def _load(self) -> None:
        self._send([("SCRIPT", "LOAD", text) for text in self._scripts.values()])

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Run the block, which asks the server.

        Raises:
            ServiceUnavailableError: It did not answer, or refused to.
        """
        try:
            yield
        except self._error as error:
            raise ServiceUnavailableError(
                f"the Redis server of the actors failed ({type(error).__name__}:"
                f" {error}): look at it, then try again"
            ) from error

    def one(self, *command: Any) -> Any:
        """Send a command and return its answer."""
        with self.guard():
            try:
                return self._redis.execute_command(*command)
            except self._unknown_script:
                self._load()
                return self._redis.execute_command(*command)

    def all(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in one round trip and return their answers.

        They are done in this order; between them others may do something.
        """
        if len(commands) < 2:
            return [self.one(*command) for command in commands]
        with self.guard():
            answers = self._send(commands)
            unknown = [
                place
                for place, answer in enumerate(answers)
                if isinstance(answer, self._unknown_script)
            ]
            if unknown:
                self._load()
                again = self._send([commands[place] for place in unknown])
                for place, answer in zip(unknown, again, strict=True):
                    answers[place] = answer
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers

    def _send(self, commands: Iterable[Command]) -> list[Any]:
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        answers: list[Any] = pipeline.execute(raise_on_error=False)
        return answers

    def listen(self, *channels: str) -> Any:
        """Return what gets the messages of channels; to be closed."""
        messages = self._redis.pubsub(ignore_subscribe_messages=True)
        messages.subscribe(*channels)
        return messages

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._redis.close()
        self._redis.connection_pool.disconnect()


class Clock:
    """The server's clock, as it was told last, without asking it.

    Thread safety: thread-safe.
    """

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()

    def set(self, seconds: Any, microseconds: Any) -> None:
        """Take over what TIME has just said."""
        self._ahead = int(seconds) + int(microseconds) / 1e6 - time.monotonic()

    def now(self) -> float:
        """Return the time in seconds since 1970."""
        return time.monotonic() + self._ahead


class _Subscription:
    def __init__(self, hints: RedisHints, callback: Callable[[Hint], object]) -> None:
        self._hints = hints
        self._callback = callback

    def close(self) -> None:
        """Tell nothing more. Idempotent."""
        self._hints.unsubscribe(self._callback)


class RedisHints:
    """Tells whoever subscribes of what is published on a channel.

    One thread, from the first subscription on; it survives outages of the server.

    Thread safety: thread-safe.
    """

    def __init__(self, link: RedisLink, channel: str) -> None:
        self._link = link
        self._channel = channel
        self._lock = threading.Lock()  # Guards all below.
        self._callbacks: list[Callable[[Hint], object]] = []
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()
        self._bell = f"{channel}:{new_id()}"  # a channel of its own, to be woken by

    def subscribe(self, callback: Callable[[Hint], object]) -> Subscription:
        """Call back on the thread of hints, from soon on."""
        with self._lock:
            self._callbacks.append(callback)
            if self._thread is None and not self._closed.is_set():
                self._thread = start_thread("ppio-actor-hints-1", self._run)
        return _Subscription(self, callback)

    def unsubscribe(self, callback: Callable[[Hint], object]) -> None:
        """Call back no more."""
        with self._lock, suppress(ValueError):
            self._callbacks.remove(callback)

    def close(self) -> None:
        """End the thread. Idempotent."""
        with self._lock:
            self._closed.set()
            thread, self._thread = self._thread, None
        if thread is None or thread is threading.current_thread():
            return
        with suppress(ServiceUnavailableError):  # it looks by itself, too
            self._link.one("PUBLISH", self._bell, "")
        thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        is_down = False
        while not self._closed.is_set():
            try:
                with closing(self._link.listen(self._channel, self._bell)) as messages:
                    is_down = False
                    self._hear(messages)
            except Exception as error:  # noqa: BLE001 - whatever a driver has to say
                if not is_down:
                    _log.warning("hints about actors are not heard for now: %s", error)
                is_down = True
                self._closed.wait(_LISTEN)

    def _hear(self, messages: Any) -> None:
        while not self._closed.is_set():
            message = messages.get_message(timeout=_LISTEN)
            hint = None if message is None else _parse(message)
            if hint is not None:
                self._tell(hint)

    def _tell(self, hint: Hint) -> None:
        for callback in list(self._callbacks):
            try:
                callback(hint)
            except Exception:  # noqa: BLE001 - the thread's outermost frame
                _log.exception("a subscriber to hints failed")


def _parse(message: Mapping[str, Any]) -> Hint | None:
    """Return what was told; None of what others say on the channel."""
    with suppress(ValueError, InvalidActorIdError):
        kind, actor, message_id = message["data"].decode().split("\n")
        return Hint(HintKind(kind), ActorId.parse(actor), message_id)
    return None
