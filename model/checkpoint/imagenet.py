"""A classifier's ImageNet weights under a detector's keys: where training starts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.checkpoint.manifest import CheckpointError
from model.config import IMAGENET_MEAN, IMAGENET_STD, DetectorConfig, TransformConfig


def from_imagenet(
    state: Mapping[str, Tensor],
    config: DetectorConfig,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> dict[str, Tensor]:
    """A torchvision ``vgg16``, ``resnet50`` or ``mobilenet_v3_large`` state dict under ``config``'s keys.

    For ``load_into(..., partial=True)``. VGG-16 brings fc6 and fc7 too (PFR trains from the whole classifier); in
    torchvision's IMAGENET1K_FEATURES those are NaN, and are left out. mean, std: how the *classifier's* pictures were
    normalised, per channel of RGB in [0, 1]; where the detector's differ, as the paper's do (BGR, no division), the
    first convolution is changed so that it answers the same to the same picture, the zero-padded border apart.
    Raises ``CheckpointError`` where the state dict is of another architecture.
    """
    signs = {
        "vgg16": "features.28.weight",
        "resnet50": "layer4.2.conv3.weight",
        "mobilenet_v3_large": "features.16.0.weight",
    }
    sign = signs.get(config.backbone)
    if sign is None or sign not in state:
        raise CheckpointError(
            f"Not the ImageNet weights of torchvision's {config.backbone}: {sign or 'a known key'} is missing."
        )
    if config.backbone == "vgg16":
        renamed = {f"backbone.body.{key}": value for key, value in state.items() if key.startswith("features.")}
        # torchvision's classifier: Linear, ReLU, Dropout, Linear, ReLU, Dropout, Linear; the last is ImageNet's alone.
        for place, name in (("classifier.0", "fc6"), ("classifier.3", "fc7")):
            for kind in ("weight", "bias"):
                value = state.get(f"{place}.{kind}")
                if value is not None and bool(torch.isfinite(value).all()):
                    renamed[f"roi_heads.box_head.{name}.{kind}"] = value
        first = "backbone.body.features.0"
    elif config.backbone == "resnet50":
        renamed = {f"backbone.body.{key}": value for key, value in state.items() if not key.startswith("fc.")}
        first = "backbone.body.conv1"
    else:
        kept = {key: value for key, value in state.items() if key.startswith("features.")}
        renamed = {f"backbone.body.{key.removeprefix('features.')}": value for key, value in kept.items()}
        first = "backbone.body.0.0"
    if (mean, std, False) != (config.transform.mean, config.transform.std, config.transform.bgr):
        _renormalise(renamed, first, mean, std, config.transform)
    return renamed


def _renormalise(
    state: dict[str, Tensor],
    first: str,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    to: TransformConfig,
) -> None:
    """Change the first convolution, trained on (x - mean) / std, to answer the same to (x - to.mean) / to.std.

    (x - mean) / std = y * (to.std / std) + (to.mean - mean) / std, where y is what the detector sees: the factor goes
    into the kernel, the offset through the kernel into the bias.
    """
    weight = state[f"{first}.weight"].double()
    if f"{first}.bias" not in state:
        raise CheckpointError(f"{first} has no bias that could take up the other normalisation.")
    scale = torch.tensor(to.std, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
    means = torch.tensor(to.mean, dtype=torch.float64) - torch.tensor(mean, dtype=torch.float64)
    offset = means / torch.tensor(std, dtype=torch.float64)
    bias = state[f"{first}.bias"].double() + torch.einsum("oihw,i->o", weight, offset)
    weight = weight * scale[None, :, None, None]
    state[f"{first}.weight"] = (weight.flip(1) if to.bgr else weight).float().contiguous()
    state[f"{first}.bias"] = bias.float()
