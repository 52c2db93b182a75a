"""Pushes adapters, merged models and built rows to the Hub."""
