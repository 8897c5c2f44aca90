"""The edge: the one listener in front of the control plane and all sandboxes."""

from __future__ import annotations

from .addressing import ControlPlane, SandboxPort, Target
from .upstreams import EdgeRefusal, Upstreams

__all__ = ["ControlPlane", "EdgeRefusal", "SandboxPort", "Target", "Upstreams"]
