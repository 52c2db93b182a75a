"""A run on disk: its folder, checkpoints, adapters and curves, and how it is resumed."""
