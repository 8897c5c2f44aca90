"""What tests of agents, and of programs that call them, need.

`ServedAgent` is an agent under test; `FaultServer` does to its clients what networks
do, by a script; `Recorder` records what a client exchanges, and replays it;
`ActorStoreContract` says what a store of actors does. The fixtures of
`ppio_agent.testing.plugin` are there for every run of pytest. The names below are
imported when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .actor_store import ActorStoreContract
    from .agents import ServedAgent
    from .faults import FaultServer, Peer, Received, Script
    from .recorder import Recorder
    from .scripts import (
        answer,
        busy,
        chunks,
        cut,
        drip,
        events,
        in_turn,
        reply,
        reset,
        retry_after_kinds,
        silence,
        tunnel,
    )

__all__ = [
    "ActorStoreContract",
    "FaultServer",
    "Peer",
    "Received",
    "Recorder",
    "Script",
    "ServedAgent",
    "answer",
    "busy",
    "chunks",
    "cut",
    "drip",
    "events",
    "in_turn",
    "reply",
    "reset",
    "retry_after_kinds",
    "silence",
    "tunnel",
]

_HOMES = {
    "actor_store": ("ActorStoreContract",),
    "agents": ("ServedAgent",),
    "faults": ("FaultServer", "Peer", "Received", "Script"),
    "recorder": ("Recorder",),
}


def __getattr__(name: str) -> object:
    # Lazy, since pytest imports this package at every start for the plug-in in it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    homes = (home for home, names in _HOMES.items() if name in names)
    return getattr(import_module(f"{__name__}.{next(homes, 'scripts')}"), name)
