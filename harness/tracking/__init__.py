"""What is kept of runs and comparisons, in MLflow and in folders: written, and read back."""
