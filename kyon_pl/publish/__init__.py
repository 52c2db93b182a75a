"""Pushing an adapter or built rows to the Hub."""
