"""The web layer alone: what an agent app could reach at most."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from ppio_agent.web import Reply, Server, read_body
from ppio_agent.wire.json import decode_json, encode_json


def echo(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Return what was asked."""
    request = decode_json(read_body(environ, 1 << 20))
    headers = [("Content-Type", "application/json")]
    return Reply(200, headers, encode_json({"echo": request})).respond(start_response)


Server(echo, port=int(sys.argv[1])).serve_forever()
