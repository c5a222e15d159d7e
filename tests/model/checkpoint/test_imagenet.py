"""ImageNet classifiers under the keys of a detector."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from model import checkpoint
from model.backbones import BACKBONES
from model.backbones.mobilenet import MobileNetV3Large
from model.backbones.resnet import ResNet50
from model.backbones.vgg import VGG16
from model.checkpoint import CheckpointError
from model.config import IMAGENET_MEAN, IMAGENET_STD
from model.faster_rcnn import FasterRCNN
from model.presets import LITE, MOBILENET_V3_320, PAPER_VGG16, RESNET50_FPN
from model.transform import Transform


def keys_below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the part of a state dict below ``prefix``, which is removed from its keys."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def make_features() -> nn.Sequential:
    """Make torchvision's vgg16 with random weights, without the 120 million numbers of its classifier."""
    with torch.device("meta"):
        model = torchvision.models.vgg16(weights=None, init_weights=False)
    convolutions: nn.Sequential = model.features.to_empty(device="cpu")
    for parameter in convolutions.parameters():
        nn.init.normal_(parameter, std=0.05)
    return convolutions


@pytest.fixture
def classifier() -> dict[str, Tensor]:
    """Return the state dict of torchvision's vgg16 with narrow fully connected layers."""
    state = {f"features.{key}": value for key, value in make_features().state_dict().items()}
    for position, shape in {0: (8, 20), 3: (8, 8), 6: (5, 8)}.items():
        state[f"classifier.{position}.weight"] = torch.randn(shape)
        state[f"classifier.{position}.bias"] = torch.randn(shape[0])
    return state


def test_fc6_and_fc7_of_vgg16_are_imported(classifier: dict[str, Tensor]) -> None:
    state = checkpoint.from_imagenet(classifier, PAPER_VGG16)
    assert torch.equal(state["roi_heads.box_head.fc6.weight"], classifier["classifier.0.weight"])
    assert torch.equal(state["roi_heads.box_head.fc7.bias"], classifier["classifier.3.bias"])
    assert torch.equal(state["backbone.body.features.28.weight"], classifier["features.28.weight"])
    assert len(state) == 2 * 13 + 4


def test_fc6_and_fc7_that_are_nan_are_left_out(classifier: dict[str, Tensor]) -> None:
    # As in torchvision's IMAGENET1K_FEATURES.
    for key in classifier:
        if key.startswith("classifier"):
            classifier[key].fill_(float("nan"))
    state = checkpoint.from_imagenet(classifier, PAPER_VGG16)
    assert set(keys_below(state, "backbone.body.")) == set(VGG16().state_dict())
    assert not keys_below(state, "roi_heads.")


def test_the_first_layer_of_vgg16_gives_the_same_under_the_papers_normalisation(classifier: dict[str, Tensor]) -> None:
    # The classifier takes RGB divided by a deviation, the paper's detector BGR less a mean.
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    pixels = image.permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    first_layer = make_features()[:2]
    first_layer.load_state_dict({"0.weight": classifier["features.0.weight"], "0.bias": classifier["features.0.bias"]})
    body = VGG16()
    body.load_state_dict(keys_below(checkpoint.from_imagenet(classifier, PAPER_VGG16), "backbone.body."))
    with torch.inference_mode():
        expected = first_layer((pixels / 255 - mean) / std)
        output = body.features[:2](Transform(PAPER_VGG16.transform).normalise(pixels))
    # The padding is each normalisation's own mean, so the border differs a little.
    torch.testing.assert_close(output[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-5)


def test_classifiers_of_resnet50_and_mobilenet_fit_the_bodies() -> None:
    for classifier, body, config in (
        (torchvision.models.resnet50(weights=None), ResNet50(nn.BatchNorm2d), RESNET50_FPN),
        (torchvision.models.mobilenet_v3_large(weights=None), MobileNetV3Large(nn.BatchNorm2d), MOBILENET_V3_320),
    ):
        state = checkpoint.from_imagenet(classifier.state_dict(), config)
        body.load_state_dict(keys_below(state, "backbone.body."))


def test_other_architectures_are_refused(classifier: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"Not the ImageNet weights of torchvision's resnet50: layer4\.2"):
        checkpoint.from_imagenet(classifier, RESNET50_FPN)
    with pytest.raises(CheckpointError, match="Not the ImageNet weights of efficientnet_lite0"):
        checkpoint.from_imagenet(classifier, LITE)
    state = BACKBONES["efficientnet_lite0"].packaged_imagenet()
    state["_conv_stem.weight"] = torch.zeros(8, 3, 3, 3)
    with pytest.raises(CheckpointError, match=r"_conv_stem\.weight has shape"):
        checkpoint.from_imagenet(state, LITE)


def test_a_partial_load_leaves_the_detectors_own_layers() -> None:
    config = replace(MOBILENET_V3_320, num_classes=3)
    model = FasterRCNN(config)
    state = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    missing = checkpoint.load_into(model, checkpoint.from_imagenet(state, config), partial=True)
    assert {key.split(".")[0] for key in missing} == {"backbone", "rpn", "roi_heads"}
    assert not any(key.startswith("backbone.body.") for key in missing)
    assert torch.equal(model.state_dict()["backbone.body.0.0.weight"], state["features.0.0.weight"])
