"""A stranger's weights into a file of ours: checked against its preset, and with its classes inside."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from model.checkpoint.io import read_state, resolve, save
from model.checkpoint.low_rank import with_rank_of
from model.checkpoint.manifest import CheckpointError, with_background
from model.checkpoint.state_dict import canonical, load_into, preset_of
from model.config import PRESETS
from model.faster_rcnn import FasterRCNN


def import_file(
    source: str | os.PathLike[str],
    target: Path,
    *,
    preset: str | None = None,
    classes: tuple[str, ...] | None = None,
) -> str:
    """Write the checkpoint ``source`` (a name or a path) as safetensors to ``target``; returns the new file's SHA-256.

    preset: a name in ``PRESETS``; told from the keys where None. classes: background may be left out; where None, what
    ``resolve`` finds. Keys take today's form, numbers float16. Raises ``CheckpointError`` where the weights do not fit
    the preset, key by key, or nothing says the classes.
    """
    if classes is None or not Path(source).is_file():
        found = resolve(source)
        state, classes, preset = read_state(found), classes or found.classes, preset or found.preset
        metrics = found.metrics
    else:
        state, metrics = read_state(Path(source)), {}
    classes = with_background(classes)
    name = preset or preset_of(state)
    config = next((one for one in PRESETS if one.name == name), None)
    if config is None:
        names = ", ".join(one.name for one in PRESETS)
        raise CheckpointError(f"{os.fspath(source)} is of no preset that its keys tell: give one of {names}.")
    state = canonical(state)
    with torch.device("meta"):
        model = FasterRCNN(with_rank_of(config.with_classes(len(classes)), state))
    load_into(model.to_empty(device="cpu"), state)
    return save(target, state, preset=config.name, classes=classes, metrics=metrics)
