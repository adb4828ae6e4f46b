"""Figures of a study: a file per question, and one place for how a variant looks in all of them."""
