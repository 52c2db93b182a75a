"""Talking to a tuned model."""
