"""ImageNet classifiers under the keys of a detector."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from model import checkpoint
from model.backbones import BACKBONES
from model.backbones.efficientnet_lite import EfficientNetLite
from model.backbones.mobilenet import MobileNetV3Large
from model.backbones.resnet import ResNet50
from model.backbones.vgg import VGG16
from model.checkpoint import CheckpointError
from model.config import IMAGENET_MEAN, IMAGENET_STD
from model.faster_rcnn import FasterRCNN
from model.presets import LITE, MOBILENET_V3_320, PAPER_VGG16, RESNET50_FPN
from model.transform import Transform


def under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def features() -> nn.Sequential:
    """torchvision's vgg16 without the 120 million numbers of its classifier."""
    with torch.device("meta"):
        model = torchvision.models.vgg16(weights=None, init_weights=False)
    convolutions: nn.Sequential = model.features.to_empty(device="cpu")
    for parameter in convolutions.parameters():
        nn.init.normal_(parameter, std=0.05)
    return convolutions


@pytest.fixture
def classifier() -> dict[str, Tensor]:
    """The state dict of torchvision's vgg16 with narrow fully connected layers."""
    state = {f"features.{key}": value for key, value in features().state_dict().items()}
    for place, shape in {0: (8, 20), 3: (8, 8), 6: (5, 8)}.items():
        state[f"classifier.{place}.weight"] = torch.randn(shape)
        state[f"classifier.{place}.bias"] = torch.randn(shape[0])
    return state


def test_vgg16_brings_fc6_and_fc7(classifier: dict[str, Tensor]) -> None:
    state = checkpoint.from_imagenet(classifier, PAPER_VGG16)
    assert torch.equal(state["roi_heads.box_head.fc6.weight"], classifier["classifier.0.weight"])
    assert torch.equal(state["roi_heads.box_head.fc7.bias"], classifier["classifier.3.bias"])
    assert torch.equal(state["backbone.body.features.28.weight"], classifier["features.28.weight"])
    assert len(state) == 2 * 13 + 4


def test_vgg16_without_a_classifier(classifier: dict[str, Tensor]) -> None:
    """torchvision's IMAGENET1K_FEATURES has NaN there."""
    for key in classifier:
        if key.startswith("classifier"):
            classifier[key].fill_(float("nan"))
    state = checkpoint.from_imagenet(classifier, PAPER_VGG16)
    assert set(under(state, "backbone.body.")) == set(VGG16().state_dict())
    assert not under(state, "roi_heads.")


def test_vgg16_answers_the_same_to_the_same_image(classifier: dict[str, Tensor]) -> None:
    """The classifier takes RGB divided by a deviation, the paper's detector BGR less a mean."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    pixels = image.permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    first_layer = features()[:2]
    first_layer.load_state_dict({"0.weight": classifier["features.0.weight"], "0.bias": classifier["features.0.bias"]})
    body = VGG16()
    body.load_state_dict(under(checkpoint.from_imagenet(classifier, PAPER_VGG16), "backbone.body."))
    with torch.inference_mode():
        expected = first_layer((pixels / 255 - mean) / std)
        output = body.features[:2](Transform(PAPER_VGG16.transform).normalise(pixels))
    # The padding is each normalisation's own mean, so the border differs a little.
    torch.testing.assert_close(output[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-5)


def test_resnet50_and_mobilenet_fit_their_bodies() -> None:
    for classifier, body, config in (
        (torchvision.models.resnet50(weights=None), ResNet50(nn.BatchNorm2d), RESNET50_FPN),
        (torchvision.models.mobilenet_v3_large(weights=None), MobileNetV3Large(nn.BatchNorm2d), MOBILENET_V3_320),
    ):
        state = checkpoint.from_imagenet(classifier.state_dict(), config)
        body.load_state_dict(under(state, "backbone.body."))


def test_other_architectures_are_refused(classifier: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"Not the ImageNet weights of torchvision's resnet50: layer4\.2"):
        checkpoint.from_imagenet(classifier, RESNET50_FPN)
    with pytest.raises(CheckpointError, match="Not the ImageNet weights of efficientnet_lite0"):
        checkpoint.from_imagenet(classifier, LITE)


def test_a_partial_load_starts_training() -> None:
    config = replace(MOBILENET_V3_320, num_classes=3)
    model = FasterRCNN(config)
    state = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    missing = checkpoint.load_into(model, checkpoint.from_imagenet(state, config), partial=True)
    assert {key.split(".")[0] for key in missing} == {"backbone", "rpn", "roi_heads"}
    assert not any(key.startswith("backbone.body.") for key in missing)
    assert torch.equal(model.state_dict()["backbone.body.0.0.weight"], state["features.0.0.weight"])


def test_efficientnet_lite_takes_in_its_norms() -> None:
    """The packaged classifier's first stage, norms included, gives what the body gives without norms."""
    state = BACKBONES["efficientnet_lite0"].packaged_imagenet()
    body = EfficientNetLite().eval()
    body.load_state_dict(under(checkpoint.from_imagenet(state, LITE), "backbone.body."))
    pixels = torch.randn(1, 3, 32, 32)
    names = [f"_bn0.{name}" for name in ("running_mean", "running_var", "weight", "bias")]
    with torch.inference_mode():
        convolved = F.conv2d(F.pad(pixels, (0, 1, 0, 1)), state["_conv_stem.weight"], stride=2)
        expected = F.relu6(F.batch_norm(convolved, *(state[name] for name in names), eps=1e-3))
        torch.testing.assert_close(body.stem(pixels), expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_with_other_shapes_is_refused() -> None:
    state = BACKBONES["efficientnet_lite0"].packaged_imagenet()
    state["_conv_stem.weight"] = torch.zeros(8, 3, 3, 3)
    with pytest.raises(CheckpointError, match=r"_conv_stem.weight has shape \(8, 3, 3, 3\)"):
        checkpoint.from_imagenet(state, LITE)
