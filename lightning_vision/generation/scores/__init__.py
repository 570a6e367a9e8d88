"""How far made images are from real ones, by their features."""
