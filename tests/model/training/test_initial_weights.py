"""The weights that training starts from."""

from dataclasses import replace
from pathlib import Path

import torch

from model.checkpoint import save
from model.faster_rcnn import FasterRCNN
from model.presets import LITE
from model.training.initial_weights import initialise_weights


def test_the_two_layers_of_a_factored_fc6_are_merged(tmp_path: Path) -> None:
    config = LITE.with_classes(3)
    factored = FasterRCNN(replace(config, roi_head=replace(config.roi_head, fc6_rank=8)))
    file = tmp_path / "factored.safetensors"
    save(file, factored.state_dict(), preset="LITE", classes=("__background__", "disc", "square"), metrics={})
    model = FasterRCNN(config)
    assert initialise_weights(model, str(file)) == "Starting from factored; 0 tensors start fresh."
    pooled = torch.randn(2, 128, 7, 7)
    with torch.inference_mode():
        expected, output = (network.eval().roi_heads.box_head(pooled) for network in (factored, model))
    torch.testing.assert_close(output, expected, atol=2e-3, rtol=0)  # the file holds float16
