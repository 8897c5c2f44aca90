"""The smallest agent: a plain function behind HTTP.

    python simple_agent.py
    curl -s localhost:8080/invocations -H 'Content-Type: application/json' \
         -d '{"query": "hello"}'
"""

from __future__ import annotations

from typing import Any

from ppio_agent import PPIOAgentRuntimeApp, RequestContext

app = PPIOAgentRuntimeApp()


@app.entrypoint
def my_agent(request: dict[str, Any], context: RequestContext) -> dict[str, Any]:
    """Answer with what was asked."""
    return {
        "response": f"Processed: {request.get('query', '')}",
        "session_id": context.session_id,
        "timestamp": context.timestamp.isoformat(),
    }


@app.ping
def health_check() -> dict[str, Any]:
    """Say that the agent is well."""
    return {"status": "healthy", "service": "My Agent"}


if __name__ == "__main__":
    app.run(port=8080)
