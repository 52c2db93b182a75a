"""Sources to checked rows of text."""
