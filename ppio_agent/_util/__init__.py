"""The bottom layer: clock, deadline, backoff, ids, redaction, threads.

Standard library only; every other package may import from here.
"""
