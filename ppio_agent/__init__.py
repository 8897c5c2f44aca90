"""Run and call AI agents from ordinary blocking Python.

Write an agent as a plain function; run it in a thread, behind HTTP or in a sandbox;
call it from any blocking code. The names below are imported when they are first used,
so ``import ppio_agent`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module

from . import exceptions
from ._version import __version__

_HOMES: dict[str, tuple[str, ...]] = {
    "agent": ("Chunk", "RequestContext", "current_context"),
    "client": (
        "AgentRuntimeClient",
        "AuthManager",
        "ClientConfig",
        "InvocationFuture",
        "SandboxSession",
        "SessionRef",
        "SessionState",
        "StreamingResponse",
        "TemplateManager",
    ),
    "hooks": ("hookimpl",),
    "sandbox": ("PlatformConfig", "SandboxPlatform"),
    "serving": (
        "AgentConfig",
        "AgentRuntimeApp",
        "ApiKeyAuth",
        "HmacAuth",
        "PPIOAgentRuntimeApp",
        "PPIOAgentRuntimeServer",
    ),
    "wire.models": (
        "AgentMetadata",
        "AgentTemplate",
        "InvocationRequest",
        "InvocationResponse",
        "PingResponse",
        "PingStatus",
        "Principal",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_HOME_OF |= {name: "exceptions" for name in exceptions.__all__ if name != "by_code"}

__all__ = ["__version__", *_HOME_OF]  # noqa: PLE0604 - the keys are strings


def __getattr__(name: str) -> object:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
