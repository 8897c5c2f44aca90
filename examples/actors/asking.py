"""Two actors that ask each other: a writer and the reviewer of its draft.

The reviewer asks back for the draft while the writer waits for the review. That is a
deadlock, which is told at once, unless the writer's type allows it (`reentrancy`).

    python asking.py
"""

from __future__ import annotations

from typing import Any

from ppio_agent.actors import (
    ActorId,
    ActorOptions,
    ActorRequestMessage,
    IActor,
    IActorRuntimeContext,
    InProcessActorRuntime,
)
from ppio_agent.exceptions import ActorDeadlockError


class Writer(IActor):
    """Writes a draft, and has it reviewed."""

    def receive(
        self, context: IActorRuntimeContext, message: ActorRequestMessage
    ) -> Any:
        if message.method == "draft":
            return context.read_state("draft")
        text = (message.params or {})["text"]
        context.write_state("draft", text)
        reviewer = ActorId("reviewer", "rita")
        review = context.ask(reviewer, "review", {"writer": str(context.actor_id)})
        context.write_state("review", review)
        return review


class Reviewer(IActor):
    """Asks the writer for the draft, and counts its words."""

    def receive(
        self, context: IActorRuntimeContext, message: ActorRequestMessage
    ) -> Any:
        writer = ActorId.parse((message.params or {})["writer"])
        try:
            words = len(context.ask(writer, "draft").split())
        except ActorDeadlockError as error:
            return f"no draft ({error.code})"
        return f"{words} words: {'too long' if words > 4 else 'fine'}"


def main() -> None:
    """Ask a writer that may be asked back, and one that may not."""
    with InProcessActorRuntime() as runtime:
        reentrant = ActorOptions(reentrancy="allow")
        runtime.register_actor_type("writer", lambda _: Writer(), options=reentrant)
        runtime.register_actor_type("strict", lambda _: Writer())
        runtime.register_actor_type("reviewer", lambda _: Reviewer())
        client = runtime.client()
        params = {"text": "the sea is wide"}
        will = client.send_request(ActorId("writer", "will"), "write", params)
        print("will:", will.result())
        stan = client.send_request(ActorId("strict", "stan"), "write", params)
        print("stan:", stan.result())


if __name__ == "__main__":
    main()
