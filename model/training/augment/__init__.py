"""Augmentation of training images: random changes of pixels and labels together.

    config.py          how much to change
    labelled_image.py  an image with its labels
    geometry.py        resizing, cropping, flipping
    colour.py          light and colour
    negatives.py       images without objects, made from photographs
    compose.py         the above in order: one image, or a mosaic of four

Everything random comes from a generator that the caller passes.
"""

from model.training.augment.compose import augment_image, compose_mosaic, make_negative_image
from model.training.augment.config import PLAIN, AugmentConfig
from model.training.augment.geometry import crop_resize, flip_horizontally, resize_and_crop
from model.training.augment.labelled_image import LabelledImage, load_labelled_image

__all__ = [
    "PLAIN",
    "AugmentConfig",
    "LabelledImage",
    "augment_image",
    "compose_mosaic",
    "crop_resize",
    "flip_horizontally",
    "load_labelled_image",
    "make_negative_image",
    "resize_and_crop",
]
