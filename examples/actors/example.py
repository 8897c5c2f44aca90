"""Two agents, two conversations with each, in one process.

python example.py
"""

from __future__ import annotations

from ppio_agent.actors import (
    ActorId,
    EchoAgent,
    InProcessActorRuntime,
    MockAIAgent,
)


def main() -> None:
    """Ask, and ask again: each conversation is an actor of its own."""
    with InProcessActorRuntime() as runtime:
        runtime.register_agent("echo", EchoAgent())
        runtime.register_agent("mock-ai", MockAIAgent(delay=0.05))
        client = runtime.client()
        for agent in ("echo", "mock-ai"):
            for conversation in ("monday", "tuesday"):
                for text in ("Hello! How are you?", "And tomorrow?"):
                    response = client.ask(
                        ActorId(agent, conversation),
                        "run",
                        {"messages": [{"role": "user", "content": text}]},
                    )
                    answer = response.data["messages"][0]["content"]
                    print(f"{agent}/{conversation}: {text} -> {answer}")


if __name__ == "__main__":
    main()
