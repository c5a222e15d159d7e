"""The frcnn command."""
