"""Our served agent. The setting `flask` has it go through Flask, as own routes do."""

from __future__ import annotations

from handlers import asked

from ppio_agent.serving import PPIOAgentRuntimeApp

port, handler, settings = asked()
through_flask = settings.pop("flask", False)
app = PPIOAgentRuntimeApp(**settings)
app.entrypoint(handler)
if through_flask:
    assert app.flask
app.run(port=port, host="127.0.0.1")
