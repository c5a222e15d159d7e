"""Comparison with torchvision's detectors."""
