"""The client: calls agents in sandboxes of the platform, from blocking code."""

from ppio_agent.exceptions import (
    AuthenticationError,
    InvocationError,
    NetworkError,
    SandboxCreationError,
    SessionNotFoundError,
    TemplateNotFoundError,
)
from ppio_agent.wire.models import (
    AgentMetadata,
    AgentTemplate,
    InvocationRequest,
    InvocationResponse,
    PingResponse,
    PingStatus,
)

from .agent_runtime import RuntimeStream
from .auth import AuthManager
from .batch import Batch, BatchItem, BatchProgress, Pool, pool
from .client import AgentRuntimeClient
from .config import ClientConfig
from .futures import InvocationFuture
from .reference import SessionRef
from .session import SandboxSession
from .state import SessionState, SessionStatus
from .stream import CancelResult, StreamingResponse
from .template import TemplateManager

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
    "InvocationFuture",
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
