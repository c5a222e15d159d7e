"""The table of backbones: a new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Collection

from model.backbones import efficientnet_lite, mobilenet, resnet, vgg
from model.backbones.spec import BackboneSpec

BACKBONES: dict[str, BackboneSpec] = {
    "vgg16": vgg.SPEC,
    "resnet50": resnet.SPEC,
    "mobilenet_v3_large": mobilenet.SPEC,
    "efficientnet_lite0": efficientnet_lite.SPEC,
}


def identify_backbone(keys: Collection[str]) -> str | None:
    """Return the name of the backbone that a detector with these state-dict keys has; None for an unknown one."""
    for name, spec in BACKBONES.items():
        if f"backbone.body.{spec.key}" in keys:
            return name
    return None
