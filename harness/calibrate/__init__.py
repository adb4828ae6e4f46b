"""How long the pieces of a step take on the ranks of a launch."""
