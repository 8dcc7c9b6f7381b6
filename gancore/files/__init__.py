"""Files: the one way to read them, and the one way to write them."""
