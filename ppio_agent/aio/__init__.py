"""The client for coroutines: the names of `ppio_agent.client`, to be awaited.

One facade over the blocking client, whose calls run on threads: nothing of it is done
a second time here. What does not block is the same object in both.
"""

from __future__ import annotations

from ppio_agent.client import (
    AgentMetadata,
    AgentTemplate,
    AuthenticationError,
    AuthManager,
    BatchItem,
    BatchProgress,
    CancelResult,
    ClientConfig,
    InvocationError,
    InvocationRequest,
    InvocationResponse,
    NetworkError,
    PingResponse,
    PingStatus,
    Pool,
    SandboxCreationError,
    SessionNotFoundError,
    SessionRef,
    SessionState,
    SessionStatus,
    TemplateNotFoundError,
    pool,
)

from .client import AgentRuntimeClient, Batch, TemplateManager
from .session import SandboxSession
from .stream import RuntimeStream, StreamingResponse

__all__ = [
    "AgentMetadata",
    "AgentRuntimeClient",
    "AgentTemplate",
    "AuthManager",
    "AuthenticationError",
    "Batch",
    "BatchItem",
    "BatchProgress",
    "CancelResult",
    "ClientConfig",
    "InvocationError",
    "InvocationRequest",
    "InvocationResponse",
    "NetworkError",
    "PingResponse",
    "PingStatus",
    "Pool",
    "RuntimeStream",
    "SandboxCreationError",
    "SandboxSession",
    "SessionNotFoundError",
    "SessionRef",
    "SessionState",
    "SessionStatus",
    "StreamingResponse",
    "TemplateManager",
    "TemplateNotFoundError",
    "pool",
]
