"""What is kept of runs and comparisons, in MLflow and in folders: written, and read back."""

import os

# MLflow reads this when it is imported, which several modules do: without it, it would write an
# identity into the user's home and report to its makers.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
