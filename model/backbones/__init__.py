"""Backbones turn pixels into feature maps: one file for each, and one table that lists them.

A new backbone is a file with a ``SPEC`` (``spec.py`` says what is in it) and a line in ``table.py``.
"""

from model.backbones.backbone import Backbone, build_backbone
from model.backbones.spec import BackboneSpec, Norm
from model.backbones.table import BACKBONES, identify_backbone

__all__ = ["BACKBONES", "Backbone", "BackboneSpec", "Norm", "build_backbone", "identify_backbone"]
