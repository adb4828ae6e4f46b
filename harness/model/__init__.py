"""What is trained: a backbone, and a classifier sliced over ranks."""
