"""Models on disk, independent of the number of ranks: the backbone whole, the classifier by
classes."""
