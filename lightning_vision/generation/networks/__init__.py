"""Networks that see an image, a time and a label, and answer with an image."""
