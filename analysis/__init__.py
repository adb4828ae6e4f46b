"""Recorded results, the notebooks that draw them, and what makes both."""
