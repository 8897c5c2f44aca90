"""What travels: JSON shapes, event-stream and Connect framing, headers, signing.

Pure functions and frozen values; no I/O, no clock, no thread. Import the modules:
``from ppio_agent.wire import sse``.
"""
