"""The actor runtime: one actor a conversation, one turn at a time, durable state."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .agent_actor import (
        THREAD_STATE_KEY,
        AgentActor,
        AgentThread,
        EchoAgent,
        MockAIAgent,
    )
    from .openai_agent import OpenAIAgent, agents_from_env
    from .options import ActorOptions, Retention, RuntimeOptions, Supervision
    from .otel import OpenTelemetry
    from .runtime import (
        InMemoryStateStorage,
        InProcessActorClient,
        InProcessActorContext,
        InProcessActorRuntime,
    )
    from .runtime_abstractions import (
        ActorId,
        ActorMessage,
        ActorMessageType,
        ActorRequestMessage,
        ActorResponseHandle,
        ActorResponseMessage,
        IActor,
        IActorClient,
        IActorPlacement,
        IActorRuntimeContext,
        IActorStateStorage,
        IActorStore,
        RequestStatus,
    )

__all__ = [
    "THREAD_STATE_KEY",
    "ActorId",
    "ActorMessage",
    "ActorMessageType",
    "ActorOptions",
    "ActorRequestMessage",
    "ActorResponseHandle",
    "ActorResponseMessage",
    "AgentActor",
    "AgentThread",
    "EchoAgent",
    "IActor",
    "IActorClient",
    "IActorPlacement",
    "IActorRuntimeContext",
    "IActorStateStorage",
    "IActorStore",
    "InMemoryStateStorage",
    "InProcessActorClient",
    "InProcessActorContext",
    "InProcessActorRuntime",
    "MockAIAgent",
    "OpenAIAgent",
    "OpenTelemetry",
    "RequestStatus",
    "Retention",
    "RuntimeOptions",
    "Supervision",
    "agents_from_env",
]

_AGENTS = (
    "THREAD_STATE_KEY",
    "AgentActor",
    "AgentThread",
    "EchoAgent",
    "MockAIAgent",
)
_MODELS = ("OpenAIAgent", "agents_from_env")
_OPTIONS = ("ActorOptions", "Retention", "RuntimeOptions", "Supervision")
_RUNTIME = (
    "InMemoryStateStorage",
    "InProcessActorClient",
    "InProcessActorContext",
    "InProcessActorRuntime",
)
_HOMES = {
    **dict.fromkeys(_AGENTS, ".agent_actor"),
    **dict.fromkeys(_MODELS, ".openai_agent"),
    **dict.fromkeys(_OPTIONS, ".options"),
    **dict.fromkeys(_RUNTIME, ".runtime"),
    "OpenTelemetry": ".otel",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, ".runtime_abstractions")
    value = globals()[name] = getattr(import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
