"""Checks against code that nobody here wrote."""
