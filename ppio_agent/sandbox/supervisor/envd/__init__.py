"""The controller inside a sandbox; loaded when it is first called."""
