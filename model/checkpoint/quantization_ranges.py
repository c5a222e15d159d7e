"""Input ranges of a checkpoint's layers, for int8, in ``FILE.ranges.json`` beside the weights.

The file has the weights' SHA-256, so that ranges of other weights are refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from model.checkpoint.io import ResolvedCheckpoint, sha256
from model.checkpoint.manifest import CheckpointError

# Lowest and highest value of a layer's input, by the layer's name.
QuantizationRanges = Mapping[str, tuple[float, float]]


def quantization_ranges_path(checkpoint: ResolvedCheckpoint) -> Path:
    """Return the path of the checkpoint's ranges, whether or not the file exists."""
    return checkpoint.path.with_suffix(".ranges.json")


def read_quantization_ranges(checkpoint: ResolvedCheckpoint) -> dict[str, tuple[float, float]]:
    """Read lowest and highest input by layer; raise ``CheckpointError`` for a missing file or one of other weights."""
    path = quantization_ranges_path(checkpoint)
    # Only a checkpoint of the manifest, which a name stands for, has a hash.
    weights = checkpoint.path if checkpoint.sha256 is None else checkpoint.name
    remedy = f"`frcnn calibrate IMAGES --weights {weights}` makes it from a folder of images"
    if not path.is_file():
        raise CheckpointError(f"precision int8 needs {path}, and it does not exist: {remedy}.")
    try:
        content = json.loads(path.read_text())
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in content["ranges"].items()}
        digest = str(content["sha256"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} holds no ranges: {remedy} anew.") from error
    if digest != sha256(checkpoint.path):
        raise CheckpointError(f"{path} is of other weights than {checkpoint.path}: {remedy} anew.")
    if not all(math.isfinite(low) and math.isfinite(high) and low <= high for low, high in ranges.values()):
        raise CheckpointError(f"{path} holds ranges that are not finite or inverted: {remedy} anew.")
    return ranges


def save_quantization_ranges(checkpoint: ResolvedCheckpoint, ranges: QuantizationRanges, images: int) -> Path:
    """Save the ranges measured on so many images beside the weights, and return the file's path."""
    path = quantization_ranges_path(checkpoint)
    lines = [f"  {json.dumps(name)}: [{low:.4g}, {high:.4g}]" for name, (low, high) in ranges.items()]
    head = f'{{\n "sha256": "{sha256(checkpoint.path)}",\n "images": {images},\n "ranges": {{\n'
    path.write_text(head + ",\n".join(lines) + "\n }\n}\n")
    return path
