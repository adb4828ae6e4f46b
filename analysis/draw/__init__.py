"""Figures of a study: one file per question, with the same style per variant in all of them."""
