"""The process that owns one sandbox, and what the platform shares with it.

Nothing is imported here: a supervisor starts with each sandbox, and each import would
be paid for each time.
"""
