"""Communication between ranks: slices, groups of ranks, and the two libraries that carry bytes."""
