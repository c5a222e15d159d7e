"""Import a classifier's ImageNet weights under a detector's keys, as a start for training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.backbones import BACKBONES, BackboneSpec
from model.checkpoint.manifest import CheckpointError
from model.config import DetectorConfig, TransformConfig


def from_imagenet(state: Mapping[str, Tensor], config: DetectorConfig) -> dict[str, Tensor]:
    """Convert the state dict of the classifier that belongs to ``config``'s backbone to ``config``'s keys.

    For ``load_into(..., partial=True)``. Where the detector normalises images otherwise than the classifier did, as the
    paper's does (BGR, no division), the first convolution is changed so that it gives the same output for the same
    image, except where the kernel reaches into the padding. Raises ``CheckpointError`` where the state dict is of
    another architecture.
    """
    spec = BACKBONES[config.backbone]
    if spec.imagenet_key not in state:
        raise CheckpointError(f"Not the ImageNet weights of {spec.imagenet_source}: {spec.imagenet_key} is missing.")
    try:
        renamed = spec.from_imagenet(state)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    transform = config.transform
    if transform.bgr or (spec.imagenet_mean, spec.imagenet_std) != (transform.mean, transform.std):
        _renormalise(renamed, spec, transform)
    return renamed


def _renormalise(state: dict[str, Tensor], spec: BackboneSpec, transform: TransformConfig) -> None:
    """Change the first convolution, trained on (x - mean) / std, to the detector's y = (x - to_mean) / to_std.

    (x - mean) / std = y * (to_std / std) + (to_mean - mean) / std: the factor is multiplied into the kernel, and the
    offset goes through the kernel into the bias.
    """
    conv = f"backbone.body.{spec.first_conv}"
    if f"{conv}.bias" not in state:
        raise CheckpointError(f"{conv} has no bias that could take up another normalisation.")
    mean, std, to_mean, to_std = (
        torch.tensor(values, dtype=torch.float64)
        for values in (spec.imagenet_mean, spec.imagenet_std, transform.mean, transform.std)
    )
    weight = state[f"{conv}.weight"].double()
    bias = state[f"{conv}.bias"].double() + torch.einsum("oihw,i->o", weight, (to_mean - mean) / std)
    weight = weight * (to_std / std)[None, :, None, None]
    state[f"{conv}.weight"] = (weight.flip(1) if transform.bgr else weight).float().contiguous()
    state[f"{conv}.bias"] = bias.float()
