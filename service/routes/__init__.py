"""The HTTP routes, each thin."""
