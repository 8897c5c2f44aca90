"""The ways in which a sandbox runs on this machine."""
