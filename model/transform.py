"""The preparation of images for the network: resize, normalise, pad to a canvas."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.config import TransformConfig
from model.structures import ImageArray, ImageBatch
from model.transfer import upload


def resized_size(config: TransformConfig, height: int, width: int) -> tuple[int, int]:
    """Return the height and width of an image after resizing, both at least 1.

    Without antialiasing as torchvision: the floor of size x scale in double precision. (torchvision uses float32 in
    traced graphs alone; it would turn a side of 480 into 799 instead of 800.) Otherwise the nearest whole size.
    """
    scale = min(config.min_size / min(height, width), config.max_size / max(height, width))
    whole = round if config.antialias else math.floor
    return max(1, whole(height * scale)), max(1, whole(width * scale))


def exact_canvas(config: TransformConfig, height: int, width: int) -> tuple[int, int]:
    """Return the smallest canvas (height, width) of whole strides that holds the resized image."""
    resized = resized_size(config, height, width)
    return tuple(-(-side // config.stride) * config.stride for side in resized)  # type: ignore[return-value]


def check_image(image: ImageArray) -> None:
    """Raise ``ValueError`` unless ``image`` is uint8 [H, W, 3] with at least one pixel."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"An image must be a uint8 array of shape [height, width, 3] in RGB order, not {kind}.")
    if 0 in image.shape:
        raise ValueError(f"An image must have at least one pixel, not the shape {image.shape}.")


class Transform:
    """Turn images (uint8 RGB [h, w, 3], any sizes) into an ``ImageBatch`` on one canvas.

    An image is normalised before it is padded, so that the padding is exactly zero for the network. The caller chooses
    the canvas from each image alone: the sizes of the other images in a batch must not change its detections.
    """

    def __init__(self, config: TransformConfig) -> None:
        self.config = config
        # (x / 255 - mean) / std
        self.mean = torch.tensor(config.mean, dtype=torch.float32).view(3, 1, 1)
        self.std = torch.tensor(config.std, dtype=torch.float32).view(3, 1, 1)

    def resize(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        """Resize a uint8 RGB image [h, w, 3] to ``size`` (height, width): float [3, height, width] in [0, 255]."""
        planes = image.permute(2, 0, 1)[None]
        if not self.config.antialias:
            # torchvision passes a scale factor and recomputes it from the floored size, as ``size`` alone does.
            return F.interpolate(planes.float(), size=size, mode="bilinear", align_corners=False)[0]
        if planes.shape[-2:] == size:
            return planes[0].float()
        if planes.device.type == "cpu":
            # uint8 in channels-last memory takes the vectorised path, and rounds to whole values as Pillow does.
            return F.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)[0].float()
        # The kernel needs contiguous planes, and would copy any other memory layout once more.
        return _antialias_on_gpu(planes.to(torch.float32, memory_format=torch.contiguous_format), size)[0]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise float pixels [..., 3, h, w] in [0, 255] as for the backbone's training, in its channel order."""
        if self.mean.device != pixels.device:
            self.mean, self.std = self.mean.to(pixels.device), self.std.to(pixels.device)
        normalised = (pixels / 255 - self.mean) / self.std
        return normalised.flip(-3) if self.config.bgr else normalised

    def __call__(
        self,
        images: Sequence[ImageArray],
        canvas: tuple[int, int],
        device: torch.device,
        full_sizes: Sequence[tuple[int, int] | None] | None = None,
    ) -> ImageBatch:
        """Resize, normalise and pad ``images`` to ``canvas`` (height, width), on ``device``.

        full_sizes: (height, width) of images that were decoded smaller; None for one whose pixels are all there.
        Raises ``ValueError`` for an array that is no image, and for one that does not fit the canvas once resized.
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
                raise ValueError(f"An image of {height}x{width} after resizing does not fit the canvas {canvas}.")
            # torch warns about read-only arrays, such as Pillow's: they are copied.
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
    """Set normalised pixels [B, 3, H, W] to zero outside each image, whose (height, width) lies at the top left."""
    for row, (height, width) in enumerate(sizes):
        if height < pixels.shape[2]:
            pixels[row, :, height:] = 0
        if width < pixels.shape[3]:
            pixels[row, :, :, width:] = 0


# The GPU's kernel keeps a filter's weights in shared memory, 48 KiB a block, so that one axis can shrink by about 184
# times; and it skips, without an error, rows after the 65,535th block (ATen/native/cuda/UpSampleBilinear2d.cu).
_MAX_SHRINKING = 64
_MAX_ROWS = 65_535


def _antialias_on_gpu(planes: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize float planes [1, 3, h, w] in [0, 255] to ``size`` as the CPU resizes uint8: axis by axis, rounded."""
    planes = _resize_rows(planes, size[1])
    return _resize_rows(planes.transpose(2, 3), size[0]).transpose(2, 3)


def _resize_rows(planes: Tensor, width: int) -> Tensor:
    """Resize each row of float planes [1, 3, h, w] to ``width`` pixels, each rounded to a whole value.

    The triangle filter cannot leave [0, 255]. Rows that are over 64 times longer than ``width`` take several steps.
    """
    while (length := planes.shape[3]) != width:
        step = width
        if length > width * _MAX_SHRINKING:
            step = max(width * _MAX_SHRINKING, -(-length // _MAX_SHRINKING))
        parts = [
            F.interpolate(part, size=(part.shape[2], step), mode="bilinear", antialias=True, align_corners=False)
            for part in planes.split(_MAX_ROWS, dim=2)
        ]
        # A half is rounded up, as on the CPU, and not to the even number.
        planes = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).add_(0.5).floor_()
    return planes
