"""Roles on disk, and the training rows that are built from their dialogues."""
