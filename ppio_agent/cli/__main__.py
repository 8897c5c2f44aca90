"""``python -m ppio_agent.cli`` is `ppio-agent`."""

from .program import main

main()
