"""One app on our own server, started in a thread; `ppio_agent.web.run` runs it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from ppio_agent._util.clock import Deadline
from ppio_agent._util.closing import Closing
from ppio_agent.web import Lanes, Server, ServerConfig

from .config import own_sandbox_id

if TYPE_CHECKING:
    from .app import PPIOAgentRuntimeApp

__all__ = ["PPIOAgentRuntimeServer"]

# What user code gets to end after it was cancelled because the app is stopped.
_CANCEL_GRACE = 5.0
# Then every caller is answered; what is slower is a thread that ignores its end, and
# the process is not to be kept by that.
_LAST_ANSWERS = 0.5
# How often a drain looks whether invocations that nobody waits for have ended.
_LOOK_EVERY = 0.02


class PPIOAgentRuntimeServer(Closing):
    """Serves an app on a thread of its own.

    Args:
        app: The app.
        host: Address to listen on; None takes the app's setting.
        port: Port to listen on, 0 for a free one; None takes the app's setting.

    Attributes:
        shows_playground: Whether a browser gets the playground at `url`.
        stopping: Set as soon as the server is to end: by a signal, by `close`, or since
            it is broken.
        on_stop: Called when it was set, but by a signal.

    Raises:
        ConfigurationError: Others could reach it without authentication, or there is
            no such address or port.

    Thread safety: thread-safe.

    Example:
        >>> from ppio_agent.serving import PPIOAgentRuntimeApp
        >>> app = PPIOAgentRuntimeApp()
        >>> with app.server(port=0) as server:
        ...     server.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(
        self,
        app: PPIOAgentRuntimeApp,
        *,
        host: str | None = None,
        port: int | None = None,
    ) -> None:
        given: dict[str, Any] = {"host": host, "port": port}
        if own_sandbox_id() is not None:
            # The platform knows where it will look for the agent.
            given["host"] = os.environ.get("HOST") or host
            given["port"] = os.environ.get("PORT") or port
        given = {name: value for name, value in given.items() if value is not None}
        config = attrs.evolve(app.config, **given)
        listening = app.listen_on(config.host)
        front, engine = listening.front, listening.engine
        self._app = app
        self._start_up = listening.start_up
        self._engine = engine
        self.stopping = threading.Event()
        self.on_stop: Callable[[], object] | None = None
        self._closing = threading.Event()
        self._stopped = threading.Event()
        self.shows_playground = engine.shows_playground and not front.wrapped
        self._server = Server(
            listening.wsgi_app,
            host=config.host,
            port=config.port,
            config=ServerConfig(
                max_concurrency=config.max_concurrency,
                max_queue=config.max_queue,
                max_request_size=config.max_request_size,
                headers=listening.headers,  # type: ignore[arg-type] # mypy cannot solve the converter `tuple`
            ),
            lanes=Lanes(
                classify=front.lane, waiting=engine.waiting, durations=engine.durations
            ),
            on_drain=engine.drain,
            on_broken=self._stop,
        )

    @property
    def page(self) -> tuple[str, str] | None:
        """Name and address of the page that browsers get, if there is one."""
        return ("playground", f"{self.url}/") if self.shows_playground else None

    @property
    def broken(self) -> bool:
        """Whether nobody is served any more, because of a failure told in the log."""
        return self._server.broken

    @property
    def port(self) -> int:
        """The real port, once started."""
        return self._server.port

    @property
    def url(self) -> str:
        """Where a client of this machine reaches it."""
        return self._server.url

    def start(self) -> PPIOAgentRuntimeServer:
        """Run the app's start-up functions and listen.

        Raises:
            OSError: The address is taken; the shut-down functions were run.
        """
        self._start_up()
        self._engine.server_stats = self._server.stats
        try:
            self._server.start()
        except OSError:
            self._engine.server_stats = None
            self._app.close()
            raise
        return self

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is closed; return whether it is."""
        return self._stopped.wait(timeout)

    def drain(self, timeout: float | None = None) -> bool:
        """Listen no more, begin nothing, and let what runs come to its end.

        Invocations that nobody waits for (asynchronous, detached) are waited for, too;
        those that wait for a slot are cancelled.

        Args:
            timeout: Seconds for that; None takes `drain_timeout` of the app.

        Returns:
            Whether everything ended in time.
        """
        limit = self._app.config.drain_timeout if timeout is None else timeout
        deadline = Deadline.after(limit)
        served = self._server.drain(limit)
        while self._engine.registry.live and not deadline.expired:
            if self._closing.wait(deadline.bound(_LOOK_EVERY)):
                break
        return served and not self._engine.registry.live

    def close(self) -> bool:
        """Cancel what runs, close everything, run the shut-down functions. Idempotent.

        Blocking: for user code that ignores being cancelled about 6 s, and for readers
        that do not take what is left for them up to 2 s more; and for the shut-down
        functions, which nothing bounds.

        Returns:
            Whether all user code has ended.
        """
        self._stop()
        self._closing.set()
        self._server.stop_listening()
        ended = self._engine.close(grace=_CANCEL_GRACE)
        # Streams have their last events now, and requests their answers: they leave.
        self._server.drain(_LAST_ANSWERS)
        self._server.flush()
        self._app.close(grace=0.0)
        self._engine.server_stats = None
        closed = self._server.close(_LAST_ANSWERS if not ended else _CANCEL_GRACE)
        self._stopped.set()
        return ended and closed

    def _stop(self) -> None:
        self.stopping.set()
        if self.on_stop is not None:
            self.on_stop()

    def __enter__(self) -> PPIOAgentRuntimeServer:
        return self.start()
