"""Our actors over HTTP, an echo agent among them."""

from __future__ import annotations

from handlers import asked

from ppio_agent.actors.http_api import main

port, _, _ = asked()
main(["--port", str(port)])
