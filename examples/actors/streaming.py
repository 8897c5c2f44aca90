"""An agent that streams: its chunks are the progress of the request.

python streaming.py
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ppio_agent import RequestContext
from ppio_agent.actors import ActorId, InProcessActorRuntime, RequestStatus


def poet(request: dict[str, Any], context: RequestContext) -> Iterator[str]:
    """Yield one line after the other; a cancel gets through at `sleep`."""
    for number in range(1, 100):
        context.sleep(0.01)
        yield f"line {number} about {request['prompt']}\n"


def main() -> None:
    """Read the first lines, stop the poet, and read again from the second line on."""
    with InProcessActorRuntime() as runtime:
        runtime.register_agent("poet", poet)
        params = {"messages": [{"role": "user", "content": "the sea"}]}
        handle = runtime.client().send_request(ActorId("poet", "c-1"), "run", params)
        for update in handle.watch_updates():
            if update.status is not RequestStatus.PENDING:
                print(update.status.value)
                break
            print(update.position, update.data["progress"], end="")
            if update.position == 3:
                print(handle.cancel(wait=5.0))
        second = next(handle.watch_updates(after=1))
        print("again:", second.data["progress"], end="")


if __name__ == "__main__":
    main()
