"""Measured, and judged: trains experiments, sets what they cost beside what they learned."""
