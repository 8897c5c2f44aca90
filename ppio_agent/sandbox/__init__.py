"""The local sandbox platform: the control plane and sandboxes of the cloud, here.

Lazy, since every supervisor process imports this package too and needs none of it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .config import PlatformConfig
    from .platform import SandboxPlatform

__all__ = ["PlatformConfig", "SandboxPlatform"]

_HOMES = {"PlatformConfig": ".config", "SandboxPlatform": ".platform"}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name], __name__), name)
