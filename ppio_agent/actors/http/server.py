"""The HTTP API of actors on our own server: started in a thread, or run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from ppio_agent._util.clock import Deadline
from ppio_agent._util.closing import Closing
from ppio_agent.web import Lanes, RequestKit, Server, ServerConfig

from .api import HEADERS, Api

__all__ = ["ActorServer"]

# Seconds that requests get to end by themselves when the server is stopped.
_DRAIN = 30.0
# What a stop of the runtime has ended has its answer by itself within these.
_SETTLING = 0.25
# What is ended then has its answer at once; what is slower is not waited for.
_LAST_ANSWERS = 2.0


class ActorServer(Closing):
    """Serves the actors of a runtime on threads of its own.

    Args:
        api: The API.
        wsgi_app: It, or what the user has put around it.
        host: Address to listen on.
        port: Port to listen on, 0 for a free one.

    Attributes:
        stopping: See `ppio_agent.web.run.Served`.
        on_stop: See there.

    Raises:
        ConfigurationError: Others could reach it without authentication.

    Thread safety: thread-safe.
    """

    def __init__(
        self,
        api: Api,
        *,
        wsgi_app: Callable[..., Iterable[bytes]] | None = None,
        host: str = "127.0.0.1",
        port: int = 8000,
    ) -> None:
        self.stopping = threading.Event()
        self.on_stop: Callable[[], object] | None = None
        self._api = api
        served: Any = api.wsgi_app if wsgi_app is None else wsgi_app
        api.front.listen_on(host, wrapped=not isinstance(served, RequestKit))
        self._server = Server(
            served,
            host=host,
            port=port,
            config=ServerConfig(
                max_concurrency=api.runtime.options.workers,
                max_request_size=api.max_request_size,
                headers=HEADERS,  # type: ignore[arg-type] # mypy cannot solve the converter `tuple`
            ),
            lanes=Lanes(classify=api.front.lane),
            on_drain=api.drain,
            on_broken=self._stop,
        )

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

    @property
    def page(self) -> tuple[str, str]:
        """Name and address of the page that browsers get."""
        return "docs", f"{self.url}/docs"

    def start(self) -> ActorServer:
        """Start the runtime, unless it runs, and listen.

        Raises:
            OSError: The address is taken; the runtime is stopped again.
        """
        self._api.open()
        try:
            self._server.start()
        except OSError:
            self._api.stop(0.0)
            raise
        return self

    def drain(self, timeout: float = _DRAIN) -> bool:
        """Listen no more, take no requests, and let turns that run come to their end.

        A runtime that was started here is stopped, which ends what has not ended. One
        that was running goes on: who still waits for it at the end is told so (202,
        or 503 where the turn runs on the caller's own thread).

        Args:
            timeout: Seconds for that.

        Returns:
            Whether all callers have their answers.
        """
        deadline = Deadline.after(timeout)
        self._server.stop_listening()
        self._api.stop(timeout)
        return self._dismiss(max(deadline.left() or 0.0, _SETTLING))

    def close(self) -> bool:
        """End what runs, as `drain` does but at once, and close everything. Idempotent.

        Returns:
            Whether all code that the server runs has ended.
        """
        self._stop()
        self._server.stop_listening()
        self._api.stop(0.0)
        # Streams have their last events now, and requests their answers: they leave.
        answered = self._dismiss(_SETTLING)
        return self._server.close(_LAST_ANSWERS) and answered

    def _dismiss(self, timeout: float) -> bool:
        """Wait for the answers, then have those given that are still to come."""
        if self._server.drain(timeout):
            return True
        self._api.dismiss()
        return self._server.drain(_LAST_ANSWERS)

    def _stop(self) -> None:
        self.stopping.set()
        if self.on_stop is not None:
            self.on_stop()

    def __enter__(self) -> ActorServer:
        return self.start()
