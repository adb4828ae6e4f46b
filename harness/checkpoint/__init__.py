"""Looks at checkpoints, and takes models out of them."""
