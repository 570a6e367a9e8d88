"""Whole classification runs."""
