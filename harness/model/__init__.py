"""The model: a backbone, and a classifier sliced over ranks."""
