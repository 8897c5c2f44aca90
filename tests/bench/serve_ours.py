"""Our served agent: the same handler as the peer's."""

from __future__ import annotations

import sys
from typing import Any

from ppio_agent.serving import PPIOAgentRuntimeApp

app = PPIOAgentRuntimeApp()


@app.entrypoint
def echo(request: dict[str, Any]) -> dict[str, Any]:
    """Return what was asked."""
    return {"echo": request}


app.run(port=int(sys.argv[1]), host="127.0.0.1")
