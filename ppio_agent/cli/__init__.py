"""The command line: `ppio-agent`, and `ppio-sandbox-cli` for the names of the field."""

from .program import main, sandbox_main

__all__ = ["main", "sandbox_main"]
