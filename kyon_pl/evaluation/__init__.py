"""Metrics of generated replies, and reports of runs."""
