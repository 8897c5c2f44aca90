"""Calls over HTTP: one deadline, typed errors, safe retries, streams that can be closed.

The only home of requests and urllib3. Nothing here knows what is asked of whom: that
is the client's.
"""

from __future__ import annotations

from .calls import CallHandle, CallScope, pause, shielded, waiting
from .http1 import Headers
from .messages import Auth, Kind, Request, Response, TransportConfig
from .retry import NO_RETRY, Failure, Outcome, RetryPolicy, decide
from .streams import RawStream
from .transport import Transport

__all__ = [
    "NO_RETRY",
    "Auth",
    "CallHandle",
    "CallScope",
    "Failure",
    "Headers",
    "Kind",
    "Outcome",
    "RawStream",
    "Request",
    "Response",
    "RetryPolicy",
    "Transport",
    "TransportConfig",
    "decide",
    "pause",
    "shielded",
    "waiting",
]
