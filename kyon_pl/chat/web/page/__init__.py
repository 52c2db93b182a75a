"""The web page: texts (labels), parts (components), what they do (events), and what is shown (shown)."""
