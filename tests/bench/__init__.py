"""Side by side measurements; `python -m tests.bench`, not collected by pytest."""
