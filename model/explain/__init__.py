"""Traces of one image's forward pass, and the stage of it at which an expected box was lost."""
