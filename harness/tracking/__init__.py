"""What a run keeps of itself, in its folder and in MLflow, written and read."""
