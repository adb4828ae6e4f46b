"""One training: the steps, what they are measured by, and what is kept of them."""
