"""Reading rows from files and the Hub, and checking them."""
