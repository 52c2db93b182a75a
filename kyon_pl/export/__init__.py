"""What leaves the project: merged models and converted adapters."""
