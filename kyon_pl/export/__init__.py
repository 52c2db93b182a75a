"""Exports: merged models and converted adapters."""
