"""Side by side measurements: `python -m tests.bench`; pytest tests the tools only."""
