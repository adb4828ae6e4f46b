"""Judges a trained model: known classes by their scores, unseen ones by pairs of images."""
