"""Load a state dict into a model: older key layouts are renamed, and errors say what probably happened."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from model.backbones import identify_backbone
from model.checkpoint.manifest import CheckpointError
from model.presets import PRESETS

_COUNTER = "num_batches_tracked"
_PREDICTOR = "roi_heads.box_predictor."
# torchvision up to 0.13 had one convolution where there is now a Sequential (_load_from_state_dict in its rpn.py and
# feature_pyramid_network.py): rpn.head.conv.weight -> .0.0, backbone.fpn.inner_blocks.2.bias -> .0
_OLD_RPN = re.compile(r"^(rpn\.head\.conv)\.(weight|bias)$")
_OLD_FPN = re.compile(r"^(?:backbone\.)?(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$")


def normalise_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``state`` under current keys: no DataParallel ``module.``, old names replaced, batch counters left out."""
    renamed = {}
    for key, value in state.items():
        if key.endswith(_COUNTER):
            continue
        key = key.removeprefix("module.")
        key = _OLD_RPN.sub(r"\1.0.0.\2", key)
        key = _OLD_FPN.sub(r"backbone.\1.0.\2", key)
        renamed[key] = value
    return renamed


def identify_preset(state: Iterable[str]) -> str | None:
    """Return the preset whose detector has keys like these, or None; the first of two presets with the same keys.

    state: a state dict, or its keys. The presets of one backbone are told apart by the form of their box head.
    """
    keys = set(normalise_keys(dict.fromkeys(state, torch.empty(0))))
    backbone = identify_backbone(keys)
    has_convs = any(key.startswith("roi_heads.box_head.0.") for key in keys)
    for config in PRESETS:
        if config.backbone == backbone and bool(config.roi_head.conv_channels) == has_convs:
            return config.name
    return None


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, partial: bool = False) -> tuple[str, ...]:
    """Copy ``state`` into ``model``; return the keys of the model that it lacks (none unless ``partial``).

    partial: keys may be missing, as when training starts from ImageNet's weights; the others must still fit. Raises
    ``CheckpointError`` that names the first missing, unexpected, misshapen or non-finite keys and the likely cause; the
    model is then unchanged.
    """
    state = normalise_keys(state)
    own = {key: value for key, value in model.state_dict().items() if not key.endswith(_COUNTER)}
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    misshapen = [key for key in own if key in state and own[key].shape != state[key].shape]
    broken = [key for key in own if key in state and not bool(torch.isfinite(state[key]).all())]
    complaints = []
    if missing and not partial:
        complaints.append(f"it lacks {_abbreviate(missing)}")
    if unexpected:
        complaints.append(f"it has {_abbreviate(unexpected)}, which the model does not have")
    if misshapen:
        shapes = [f"{key} {tuple(state[key].shape)} where the model's is {tuple(own[key].shape)}" for key in misshapen]
        complaints.append(f"shapes differ: {_abbreviate(shapes)}")
    if broken:
        complaints.append(f"NaN or infinity in {_abbreviate(broken)}")
    if complaints:
        cause = _likely_cause(own, state, misshapen, missing, unexpected)
        raise CheckpointError(f"These weights do not fit: {'; '.join(complaints)}. {cause}")
    model.load_state_dict(state, strict=False)
    return tuple(missing)


def _abbreviate(names: list[str], limit: int = 3) -> str:
    """Join the first ``limit`` names, and count the others."""
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _likely_cause(
    own: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    misshapen: list[str],
    missing: list[str],
    unexpected: list[str],
) -> str:
    """Return a sentence that says why ``state`` does not fit a model whose state dict is ``own``, most likely."""
    state_preset, model_preset = identify_preset(state), identify_preset(own)
    if "fc.weight" in state or "classifier.0.weight" in state:
        return "They are an ImageNet classifier's and not a detector's: a backbone to start training from."
    if state_preset != model_preset:
        if state_preset is None:
            return "They are not a Faster R-CNN of any preset here."
        return (
            f"They look like preset {state_preset}, and the model is {model_preset or 'another'}: "
            "name the right preset."
        )
    if misshapen and all(key.startswith(_PREDICTOR) for key in misshapen):
        trained, expected = (len(weights[f"{_PREDICTOR}cls_score.bias"]) for weights in (state, own))
        return (
            f"They were trained for {trained} classes, background counted, and the model was made for {expected}: "
            "correct the list of classes."
        )
    if missing and not unexpected and not misshapen:
        return "The rest of them fits: they are a part of a checkpoint, or were cut off when they were saved."
    if misshapen:
        return "The layers have these names but another width: a detector of another configuration."
    if missing or unexpected:
        return "Most likely another version of the same architecture."
    return "Training diverged, or the file was damaged."
