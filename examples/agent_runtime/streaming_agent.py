"""An agent that streams: what it yields is sent at once.

    python streaming_agent.py
    curl -N localhost:8080/invocations -H 'Accept: text/event-stream' \
         -H 'Content-Type: application/json' -d '{"prompt": "three chunks, please"}'

An `async def` generator works the same way; this one is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ppio_agent import PPIOAgentRuntimeApp, RequestContext

app = PPIOAgentRuntimeApp()


@app.entrypoint
def streaming_agent(request: dict[str, Any], context: RequestContext) -> Iterator[str]:
    """Yield one chunk a tenth of a second; a caller who leaves ends it."""
    for number in range(1, int(request.get("chunks", 10)) + 1):
        context.sleep(0.1)
        yield f"Chunk {number}"


if __name__ == "__main__":
    app.run(port=8080)
