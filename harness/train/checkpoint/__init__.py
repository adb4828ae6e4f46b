"""A model on disk, free of the number of ranks: the backbone whole, the classifier by classes."""
