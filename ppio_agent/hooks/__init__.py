"""Package hooks."""
