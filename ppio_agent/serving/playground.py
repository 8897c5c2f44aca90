"""The playground: one page by which a person talks to the agent in a browser.

The page is a file beside this module, read when it is first asked for.
"""

from __future__ import annotations

from pathlib import Path

from ppio_agent.web import Reply
from ppio_agent.web.page import page

__all__ = ["playground"]


def playground() -> Reply:
    """Return the page."""
    return page(Path(__file__).with_suffix(".html"))
