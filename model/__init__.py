"""Faster R-CNN in PyTorch: images as arrays in, boxes out. Knows nothing of HTTP."""

from model.detector import Detector
from model.structures import Detections, DetectOptions, DetectorInfo

__all__ = ["DetectOptions", "Detections", "Detector", "DetectorInfo"]
