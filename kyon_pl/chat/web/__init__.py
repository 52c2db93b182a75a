"""The chat on a web page: what a request may be, who may ask how much, and the page itself."""
