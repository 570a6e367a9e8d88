"""Whole runs that learn to make images."""
