"""Many machines: starts the ranks of a run and ends them."""
