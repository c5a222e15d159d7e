"""What each layer of a checkpoint was seen to take in, beside its weights: ``FILE.ranges.json``.

Of the weights themselves nothing is said there but their hash: a file that is put beside others is found out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from model.checkpoint.io import ResolvedCheckpoint, sha256
from model.checkpoint.manifest import CheckpointError

Ranges = Mapping[str, tuple[float, float]]


def ranges_file(checkpoint: ResolvedCheckpoint) -> Path:
    """Where the ranges of ``checkpoint`` lie, or would."""
    return checkpoint.path.with_suffix(".ranges.json")


def read_ranges(checkpoint: ResolvedCheckpoint) -> dict[str, tuple[float, float]]:
    """Lowest and highest value by the layer's name. Raises ``CheckpointError`` where none are there, or of others."""
    path = ranges_file(checkpoint)
    weights = checkpoint.path if checkpoint.sha256 is None else checkpoint.name  # what the manifest has, has a hash
    how = f"`frcnn calibrate PICTURES --weights {weights}` makes it of a folder of pictures"
    if not path.is_file():
        raise CheckpointError(f"precision int8 needs {path}, and it is not there: {how}.")
    try:
        content = json.loads(path.read_text())
        ranges = {str(name): (float(low), float(high)) for name, (low, high) in content["ranges"].items()}
        digest = str(content["sha256"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} holds no ranges: {how} anew.") from error
    if digest != sha256(checkpoint.path):
        raise CheckpointError(f"{path} is of other weights than {checkpoint.path}: {how} anew.")
    if not all(math.isfinite(low) and math.isfinite(high) and low <= high for low, high in ranges.values()):
        raise CheckpointError(f"{path} holds ranges that are none: {how} anew.")
    return ranges


def write_ranges(checkpoint: ResolvedCheckpoint, ranges: Ranges, pictures: int) -> Path:
    """Write what was seen on so many pictures; returns the file."""
    path = ranges_file(checkpoint)
    lines = [f"  {json.dumps(name)}: [{low:.4g}, {high:.4g}]" for name, (low, high) in ranges.items()]
    head = f'{{\n "sha256": "{sha256(checkpoint.path)}",\n "pictures": {pictures},\n "ranges": {{\n'
    path.write_text(head + ",\n".join(lines) + "\n }\n}\n")
    return path
