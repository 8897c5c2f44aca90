"""The peer's own served agent; run in the peer's environment, by path."""

from __future__ import annotations

import sys
from typing import Any

from ppio_sandbox.agent_runtime import AgentRuntimeApp

app = AgentRuntimeApp()


@app.entrypoint
def echo(request: dict[str, Any]) -> dict[str, Any]:
    """Return what was asked."""
    return {"echo": request}


app.run(port=int(sys.argv[1]), host="127.0.0.1")
