"""A process is killed in the middle of a turn; the next one does what it left.

python durable.py
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from ppio_agent.actors import (
    ActorId,
    ActorRequestMessage,
    IActor,
    IActorRuntimeContext,
    InProcessActorRuntime,
    RuntimeOptions,
)

ACCOUNT = ActorId("account", "anna")


class Account(IActor):
    """Adds up deposits; the process dies in the second one, the first time."""

    def receive(
        self, context: IActorRuntimeContext, message: ActorRequestMessage
    ) -> Any:
        amount = (message.params or {})["amount"]
        balance = (context.read_state("balance") or 0) + amount
        context.write_state("balance", balance)
        if amount == 20 and context.attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"balance": balance, "attempt": context.attempt}


def runtime_on(path: Path) -> InProcessActorRuntime:
    """Return a runtime that keeps everything in one file."""
    options = RuntimeOptions(sweep_every=0.1)
    runtime = InProcessActorRuntime(f"sqlite:///{path}", options=options)
    runtime.register_actor_type("account", lambda _: Account())
    return runtime


def deposit(path: Path) -> None:
    """Send three deposits; what was accepted is in the file."""
    with runtime_on(path) as runtime:
        client = runtime.client()
        handles = [
            client.send_request(ACCOUNT, "deposit", {"amount": amount}, f"d-{amount}")
            for amount in (10, 20, 30)
        ]
        print(handles[-1].result(), "is never printed")


def main() -> None:
    """Begin in a child process, and end here."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "actors.db"
        child = os.spawnl(
            os.P_WAIT, sys.executable, sys.executable, __file__, str(path)
        )
        print("the first process ended by signal", -child)
        with runtime_on(path) as runtime:
            client = runtime.client()
            for amount in (10, 20, 30):
                handle = client.get_request(ACCOUNT, f"d-{amount}")
                print(f"deposit of {amount}:", handle.result(timeout=30))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        deposit(Path(sys.argv[1]))
    else:
        main()
