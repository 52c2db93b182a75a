"""A character on disk: its folder, its dialogues, and the training rows that are built from them."""
