"""Recorded results, the notebooks that draw them, and the programs that make both."""
