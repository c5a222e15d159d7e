"""Faster R-CNN in PyTorch: bytes never, boxes always. Knows nothing of HTTP."""
