"""Package _util."""
