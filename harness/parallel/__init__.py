"""Who talks to whom: slices, groups of ranks, and the two libraries that carry bytes."""
