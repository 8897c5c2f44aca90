"""What callers over HTTP are told while the store of the actors cannot be reached."""

from __future__ import annotations

import logging
from functools import wraps
from typing import TYPE_CHECKING

from ppio_agent.actors._outage import OUTAGES, is_outage
from ppio_agent.exceptions import PPIOAgentError, ServiceUnavailableError
from ppio_agent.web import Reply
from ppio_agent.web.exchange import Exchange
from ppio_agent.web.routes import View

if TYPE_CHECKING:
    from ppio_agent.actors.runtime import InProcessActorRuntime

    from .api import Api

__all__ = ["guarded", "told"]

_log = logging.getLogger(__name__)


def guarded(view: View) -> View:
    """Return a view that tells nobody where a store is that cannot be reached."""

    @wraps(view)
    def ask(api: Api, exchange: Exchange, **params: str) -> Reply:
        try:
            return view(api, exchange, **params)
        except OUTAGES as error:
            raise told(api.runtime, error) from error.__cause__

    return ask


def told(runtime: InProcessActorRuntime, error: Exception) -> PPIOAgentError:
    """Return an error as callers are told it; of a store only the log is told more."""
    if isinstance(error, PPIOAgentError) and not is_outage(error):
        return error
    if runtime.running:
        runtime.engine.outage.met(error)
    else:
        _log.warning("the store of the actors cannot be reached: %s", error)
    text = "the store of the actors cannot be reached"
    if runtime.options.debug:
        text = f"{text}: {error}"
    return ServiceUnavailableError(text, retry_after=1.0)
