"""The life of sandboxes: their states and time, their rows, and who holds them all."""
