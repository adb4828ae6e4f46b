"""Packs an image folder: decoded and resized once, in a few files."""
