"""Profiles of chosen windows: all ranks in one file, on one clock."""
