"""Rows of text to token ids and trained positions."""
