"""Encoded rows to planned micro-batches."""
