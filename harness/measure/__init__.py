"""What it cost: time by phase, bytes, the machine's gauges, and MLflow."""
