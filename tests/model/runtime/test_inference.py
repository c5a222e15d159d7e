"""What a detector is turned into for inference: other weights, the same answers."""

import copy

import pytest
import torch
from torch import nn

from model.config import PRESETS, DetectorConfig
from model.faster_rcnn import FasterRCNN
from model.runtime.inference import for_inference


def _kernels(model: nn.Module) -> list[tuple[int, ...]]:
    return [layer.kernel_size for layer in model.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize("config", PRESETS, ids=lambda config: config.name)
@torch.no_grad()
def test_every_preset_answers_as_before(config: DetectorConfig) -> None:
    torch.manual_seed(0)
    model = FasterRCNN(config.with_classes(3)).eval()
    ready = copy.deepcopy(model)
    for_inference(ready, torch.device("cpu"))
    pixels, regions = torch.randn(1, 3, 64, 96), torch.tensor([[0.0, 3.0, 5.0, 60.0, 50.0], [0.0, 0.0, 0.0, 20.0, 9.0]])
    before, after = model.dense(pixels), ready.dense(pixels)
    answers = [*before.maps, before.logits, before.deltas, *model.roi_heads(before.maps, regions)]
    found = [*after.maps, after.logits, after.deltas, *ready.roi_heads(after.maps, regions)]
    for one, other in zip(answers, found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-4 * float(one.abs().max()), rtol=0)


def test_kernels_are_widened_for_cpus_alone() -> None:
    config = next(config for config in PRESETS if config.name == "LITE")
    with torch.device("meta"):
        plain, on_cpu, on_gpu = (FasterRCNN(config) for _ in range(3))
    for_inference(on_cpu, torch.device("cpu"))
    for_inference(on_gpu, torch.device("cuda:0"))
    assert _kernels(on_gpu) == _kernels(plain) != _kernels(on_cpu)
