"""Passes for inference on a CPU, each a function that rewrites layers of a model in place."""
