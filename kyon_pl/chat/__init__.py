"""Chat with a fine-tuned model, in the terminal or on a web page."""
