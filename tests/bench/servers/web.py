"""The web layer alone: what an agent app could reach at most."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from handlers import asked

from ppio_agent.web import Reply, Server, read_body
from ppio_agent.wire.json import decode_json, encode_json

port, handler, _ = asked()


def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Return what the handler makes of the request."""
    request = decode_json(read_body(environ, 1 << 20))
    headers = [("Content-Type", "application/json")]
    return Reply(200, headers, encode_json(handler(request))).respond(start_response)


Server(serve, port=port).serve_forever()
