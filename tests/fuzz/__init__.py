"""Properties that hold for whatever anybody sends; `make fuzz` tries them for long."""
