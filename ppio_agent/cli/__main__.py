"""``python -m ppio_agent.cli`` is `ppio-agent`."""

from .main import main

main()
