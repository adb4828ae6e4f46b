"""Measurements: time by phase, bytes, and facts about the machine."""
