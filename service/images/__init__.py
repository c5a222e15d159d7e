"""Decode and draw images, in processes that can be killed. Nothing here imports torch."""
