"""The other peer's served agent, as its `app.run` serves it."""

from __future__ import annotations

from bedrock_agentcore.runtime import BedrockAgentCoreApp
from handlers import asked

port, handler, _ = asked()
app = BedrockAgentCoreApp()
app.entrypoint(handler)
app.run(port=port, host="127.0.0.1")
