"""Encoding rows to token ids and trained positions, in the cache."""
