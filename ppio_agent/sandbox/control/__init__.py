"""The control plane: the cloud's HTTP API for templates and sandboxes."""

from __future__ import annotations

from .app import create_app, lane_of
from .kit import Control, refusal_of

__all__ = ["Control", "create_app", "lane_of", "refusal_of"]
