"""Time: a reminder wakes an actor, even one that is not live; a `tell` may be late.

python reminders.py
"""

from __future__ import annotations

import queue
from typing import Any

from ppio_agent.actors import (
    ActorId,
    ActorRequestMessage,
    IActor,
    IActorRuntimeContext,
    InProcessActorRuntime,
)

heard: queue.Queue[str] = queue.Queue(maxsize=100)


class Plant(IActor):
    """Is watered twice, and tells the gardener."""

    def receive(
        self, context: IActorRuntimeContext, message: ActorRequestMessage
    ) -> Any:
        if message.method == "begin":
            # Both leave with the commit of this turn: if it fails, neither comes.
            context.set_reminder("water", 0.05, "drink", period=1.0, count=2)
            context.tell(ActorId("gardener", "gil"), "hear", {"text": "planted"})
            return "planted"
        drunk = (context.read_state("drunk") or 0) + 1
        context.write_state("drunk", drunk)
        context.tell(ActorId("gardener", "gil"), "hear", {"text": f"drunk {drunk}"})
        return drunk


class Gardener(IActor):
    """Hears of it."""

    def receive(
        self, context: IActorRuntimeContext, message: ActorRequestMessage
    ) -> Any:
        text = (message.params or {})["text"]
        context.write_state("last", text)
        heard.put(text)
        return text


def main() -> None:
    """Plant, and wait until the gardener has heard all."""
    with InProcessActorRuntime() as runtime:
        runtime.register_actor_type("plant", lambda _: Plant())
        runtime.register_actor_type("gardener", lambda _: Gardener())
        runtime.client().ask(ActorId("plant", "rose"), "begin")
        for _ in range(3):
            print("the gardener hears:", heard.get(timeout=30))


if __name__ == "__main__":
    main()
