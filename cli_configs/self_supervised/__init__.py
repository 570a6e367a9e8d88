"""Whole runs that learn from images without labels."""
