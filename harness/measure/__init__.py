"""What it cost: time by phase, bytes, and the machine's gauges."""
