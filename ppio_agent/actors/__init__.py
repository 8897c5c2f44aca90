"""The actor runtime: one actor a conversation, one turn at a time, durable state."""

from __future__ import annotations
