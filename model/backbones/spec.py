"""The entry that each backbone's file contributes to the table of backbones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from model.config import IMAGENET_MEAN, IMAGENET_STD

# Makes the normalisation layer for a number of channels.
Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class BackboneSpec:
    """How to build a backbone's body, recognise its keys, import its ImageNet weights and train it.

    build: make the body with random weights; it maps pixels [B, 3, H, W] to a list of maps, finest first, and has the
        attributes ``channels`` and ``strides`` of these maps. Its argument makes the norm after each convolution; a
        body without norms ignores it. Each norm is registered directly after its convolution, which
        ``runtime/fold_batchnorm.py`` folds it into. For int8, torch.fx must be able to trace the body.
    key: a key of this body's state dict that no other body's has.
    first_conv: the name, within the body, of the convolution that reads the pixels. It needs a bias where a detector
        normalises images otherwise than the ImageNet classifier did.
    frozen: prefixes of the parameters, within the body, that training leaves unchanged unless a recipe says otherwise:
        the first stages, as arXiv 1506.01497, section 3.1.3, and torchvision do.
    imagenet_source: where its ImageNet weights come from, in words for error messages.
    imagenet_key: a key that the state dict of that ImageNet classifier must have.
    from_imagenet: turn that state dict into the keys of a detector; raises ``ValueError`` where it does not fit.
    imagenet_mean, imagenet_std: how the classifier's images were normalised, per channel of RGB in [0, 1].
    packaged_imagenet: read the classifier's state dict from an installed package; raises ``ImportError`` without the
        package. None where no package has it.
    """

    build: Callable[[Norm], nn.Module]
    key: str
    first_conv: str
    frozen: tuple[str, ...]
    imagenet_source: str
    imagenet_key: str
    from_imagenet: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    imagenet_mean: tuple[float, float, float] = IMAGENET_MEAN
    imagenet_std: tuple[float, float, float] = IMAGENET_STD
    packaged_imagenet: Callable[[], dict[str, Tensor]] | None = None
