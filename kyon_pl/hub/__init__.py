"""Downloads from the Hub, and their errors."""
