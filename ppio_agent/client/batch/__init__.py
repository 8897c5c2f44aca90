"""Many invocations of one agent: the threads, their sandboxes, limits and journal."""

from __future__ import annotations

from .batch import Batch
from .plan import BatchItem, BatchPlan, Pool, pool
from .progress import BatchProgress
from .supply import BatchSupply

__all__ = [
    "Batch",
    "BatchItem",
    "BatchPlan",
    "BatchProgress",
    "BatchSupply",
    "Pool",
    "pool",
]
