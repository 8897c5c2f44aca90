"""A conversation: the agent is a plain function, and gets all that was said before.

python conversation.py
"""

from __future__ import annotations

from typing import Any

from ppio_agent.actors import (
    ActorId,
    AgentThread,
    InMemoryStateStorage,
    InProcessActorRuntime,
)
from ppio_agent.exceptions import ActorFailedError, ValidationError

MENU = {"tea": 3, "cake": 4}


def waiter(request: dict[str, Any]) -> str:
    """Take an order; the bill is what was ordered in this conversation."""
    text = request["prompt"]
    if text in MENU:
        return f"{text}: {MENU[text]}"
    if text != "the bill, please":
        raise ValidationError(f"there is no {text} on the menu")
    said = [m["content"] for m in request["messages"] if m["role"] == "user"]
    return f"that is {sum(MENU.get(order, 0) for order in said)}"


def main() -> None:
    """Order at two tables, ask for what there is not, and pay at one of them."""
    storage = InMemoryStateStorage()
    with InProcessActorRuntime(storage) as runtime:
        runtime.register_agent("waiter", waiter)
        client = runtime.client()

        def say(table: str, text: str) -> str:
            message = {"role": "user", "content": text}
            table_id = ActorId("waiter", table)
            handle = client.send_request(table_id, "run", {"messages": [message]})
            answer: str = handle.result()["messages"][0]["content"]
            return answer

        for table, text in (("1", "tea"), ("2", "cake"), ("1", "cake")):
            print(f"table {table}: {say(table, text)}")
        try:
            say("1", "fish")
        except ActorFailedError as error:
            print(f"table 1: {error}")  # and the conversation is as it was before
        print(f"table 1: {say('1', 'the bill, please')}")

        thread = AgentThread.from_state(storage.read_state(ActorId("waiter", "1")))
        for message in thread.messages:
            print(f"  {message['role']}: {message['content']}")


if __name__ == "__main__":
    main()
