"""One training: its steps, its pauses, and what it leaves behind."""
