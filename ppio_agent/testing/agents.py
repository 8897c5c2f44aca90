"""An agent under test: called in process, or served on a port of its own."""

from __future__ import annotations

import threading
from typing import Any

from ppio_agent._util.closing import Closing
from ppio_agent.serving import PPIOAgentRuntimeApp, PPIOAgentRuntimeServer
from ppio_agent.serving.testing import AgentTestClient

__all__ = ["ServedAgent"]


class ServedAgent(Closing):
    """An agent, called through `client` without a socket or at `url` with one.

    Args:
        agent: An app, or what `PPIOAgentRuntimeApp.entrypoint` takes: a function, a
            generator function, an object with ``run``.
        settings: For the app that is made of it, as ``max_concurrency=1``.

    Attributes:
        app: The app.

    Raises:
        TypeError: Settings were given with an app, which has its own.

    Thread safety: thread-safe.

    Example:
        >>> with ServedAgent(lambda request: request["prompt"].upper()) as agent:
        ...     agent.client.invoke({"prompt": "hi"}).result
        'HI'
    """

    def __init__(self, agent: Any, **settings: Any) -> None:
        if isinstance(agent, PPIOAgentRuntimeApp):
            if settings:
                raise TypeError("settings are for a handler; an app has its own")
            self.app = agent
        else:
            self.app = PPIOAgentRuntimeApp(**settings)
            self.app.entrypoint(agent)
        self._lock = threading.Lock()  # guards the start of the server
        self._server: PPIOAgentRuntimeServer | None = None

    @property
    def client(self) -> AgentTestClient:
        """A client that calls the app in process."""
        return self.app.test_client()

    @property
    def url(self) -> str:
        """Where it is served; the first use starts the server.

        Raises:
            OSError: It cannot listen.
        """
        with self._lock:
            if self._server is None:
                self._server = self.app.server(host="127.0.0.1", port=0).start()
            return self._server.url

    def close(self) -> None:
        """End what runs, the server and the app; idempotent."""
        with self._lock:
            server = self._server
        if server is None:
            self.app.close()
        else:
            server.close()
