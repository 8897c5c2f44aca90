"""A counter: counts as far as it is told, and knows where it was stopped."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ppio_agent import PPIOAgentRuntimeApp, RequestContext

app = PPIOAgentRuntimeApp()
# Of one visitor only: each conversation has a sandbox, and so a process, of its own.
reached: list[int] = []


@app.entrypoint
def counter(request: dict, context: RequestContext) -> Iterator[str]:
    goal = re.search(r"\d+", str(request["message"]))
    if goal is None:
        yield f"Tell me a number. I have counted to: {reached}"
        return
    reached.append(0)
    for number in range(1, int(goal[0]) + 1):
        yield f"{number} "
        reached[-1] = number
        context.sleep(0.1)  # raises when the visitor has left or pressed Stop


if __name__ == "__main__":
    app.run()
