"""The peer's own served agent, as its `app.run` serves it."""

from __future__ import annotations

from handlers import asked
from ppio_sandbox.agent_runtime import AgentRuntimeApp

port, handler, _ = asked()
app = AgentRuntimeApp()
app.entrypoint(handler)
app.run(port=port, host="127.0.0.1")
