"""From pictures to a canvas: resize, normalise, pad; and the canvas's size, which one picture alone decides."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import TransformConfig
from model.structures import ImageBatch
from model.transfer import upload

Image = npt.NDArray[np.uint8]


def resized_size(config: TransformConfig, height: int, width: int) -> tuple[int, int]:
    """Height and width after resizing, at least 1.

    As TV where there is no antialias: the floor of size x scale, all in double precision (trap 17; float32 is for its
    traced graphs alone, and would make 799 of 480 at a short side of 800). Otherwise the nearest whole size.
    """
    scale = min(config.min_size / min(height, width), config.max_size / max(height, width))
    whole = round if config.antialias else math.floor
    return max(1, whole(height * scale)), max(1, whole(width * scale))


def exact_canvas(config: TransformConfig, height: int, width: int) -> tuple[int, int]:
    """The smallest canvas (height, width) of whole strides that holds the resized picture."""
    resized = resized_size(config, height, width)
    return tuple(-(-side // config.stride) * config.stride for side in resized)  # type: ignore[return-value]


def check_image(image: Image) -> None:
    """Raise ``ValueError`` unless ``image`` is uint8 [H, W, 3] with at least one pixel."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"An image must be a uint8 array of shape [height, width, 3] in RGB order, not {found}.")
    if 0 in image.shape:
        raise ValueError(f"An image must have at least one pixel, not the shape {image.shape}.")


class Transform:
    """Pictures (uint8 RGB [h, w, 3], any sizes) to an ``ImageBatch`` on one canvas.

    Normalised before it is padded, so that the padding is exactly zero for the network, and padded to a canvas
    that the caller chose from each picture alone: a batch mate cannot change an answer by its size (trap 18).
    """

    def __init__(self, config: TransformConfig) -> None:
        self.config = config
        # (x / 255 - mean) / std
        self.mean = torch.tensor(config.mean, dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(config.std, dtype=torch.float32).view(3, 1, 1)

    def resize(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Float pixels [3, h, w] in [0, 255] of a uint8 RGB image [h, w, 3] at ``size`` (height, width)."""
        planes = image.permute(2, 0, 1)[None]
        if not self.config.antialias:
            # TV passes a scale factor and recomputes it from the floored size, which is what ``size`` alone does.
            return F.interpolate(planes.float(), size=size, mode="bilinear", align_corners=False)[0]
        if planes.shape[-2:] == size:
            return planes[0].float()
        if planes.device.type == "cpu":
            # uint8 in channels-last memory takes the vectorised path, and rounds to whole values as Pillow does.
            return F.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)[0].float()
        # The kernel wants planes that lie one after the other: another order would be copied once more.
        return _antialias_on_gpu(planes.to(torch.float32, memory_format=torch.contiguous_format), size)[0]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Float [..., 3, h, w] in [0, 255] to what the backbone was trained on (and its channel order)."""
        if self.mean.device != pixels.device:
            self.mean, self.std = self.mean.to(pixels.device), self.std.to(pixels.device)
        normalised = (pixels / 255 - self.mean) / self.std
        return normalised.flip(-3) if self.config.bgr else normalised

    def __call__(
        self,
        images: Sequence[Image],
        canvas: tuple[int, int],
        device: torch.device,
        full_sizes: Sequence[tuple[int, int] | None] | None = None,
    ) -> ImageBatch:
        """full_sizes: (height, width) of pictures that were decoded smaller; None for one whose pixels are all there.

        Raise ``ValueError`` for an array that is no picture or does not fit the canvas once resized.
        """
        for image in images:
            check_image(image)
        originals = [
            full or (image.shape[0], image.shape[1])
            for image, full in zip(images, full_sizes or [None] * len(images), strict=True)
        ]
        sizes = []
        pixels = torch.empty((len(images), 3, *canvas), device=device, memory_format=torch.channels_last).zero_()
        for row, image in enumerate(images):
            height, width = resized_size(self.config, *originals[row])
            if height > canvas[0] or width > canvas[1]:
                raise ValueError(f"A picture of {height}x{width} after resizing does not fit the canvas {canvas}.")
            # A read-only array, as Pillow gives them, is copied: torch would warn of it.
            tensor = upload(np.require(image, requirements=["C", "W"]), torch.uint8, device)
            pixels[row, :, :height, :width] = self.resize(tensor, (height, width))
            sizes.append((height, width))
        pixels = self.normalise(pixels)
        clear_padding(pixels, sizes)
        return ImageBatch(
            pixels=pixels,
            sizes=torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2),
            original_sizes=torch.tensor(originals, dtype=torch.int64).reshape(-1, 2),
        )


def clear_padding(pixels: Tensor, sizes: Sequence[tuple[int, int]]) -> None:
    """Set normalised pixels [B, 3, H, W] to zero outside each picture, whose (height, width) begins in the corner."""
    for row, (height, width) in enumerate(sizes):
        if height < pixels.shape[2]:
            pixels[row, :, height:] = 0
        if width < pixels.shape[3]:
            pixels[row, :, :, width:] = 0


# The GPU's kernel keeps a filter's weights in shared memory, 48 KiB a block, so that one axis can shrink by about 184
# times; and it leaves out, in silence, rows after the 65,535th block (ATen/native/cuda/UpSampleBilinear2d.cu).
_MOST_SHRINKING = 64
_MOST_ROWS = 65_535


def _antialias_on_gpu(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize float planes [1, 3, h, w] in [0, 255] to ``size`` as the CPU resizes uint8: by axis, and rounded."""
    planes = _resize_rows(planes, size[1])
    return _resize_rows(planes.transpose(2, 3), size[0]).transpose(2, 3)


def _resize_rows(planes: Tensor, wanted: int) -> Tensor:
    """Resize each row of float planes [1, 3, h, w] to ``wanted`` pixels, each rounded to a whole value.

    The triangle filter cannot leave [0, 255]. Rows that are over 64 times longer than wanted take several steps.
    """
    while (length := planes.shape[3]) != wanted:
        step = wanted
        if length > wanted * _MOST_SHRINKING:
            step = max(wanted * _MOST_SHRINKING, -(-length // _MOST_SHRINKING))
        parts = [
            F.interpolate(part, size=(part.shape[2], step), mode="bilinear", antialias=True, align_corners=False)
            for part in planes.split(_MOST_ROWS, dim=2)
        ]
        # A half is rounded up, as there, and not to the even number.
        planes = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).add_(0.5).floor_()
    return planes
