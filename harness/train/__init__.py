"""One training: its steps, its measurements and its checkpoints."""
