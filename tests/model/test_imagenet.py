"""ImageNet's classifiers under a detector's keys, and strangers' checkpoints made ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from model import checkpoint
from model.backbones.mobilenet import mobilenet_v3_large
from model.backbones.resnet import resnet50
from model.backbones.vgg import vgg16
from model.checkpoint import CheckpointError
from model.config import IMAGENET_MEAN, IMAGENET_STD, LITE, MOBILENET_V3_320, PAPER_VGG16, PRESETS, RESNET50_FPN
from model.faster_rcnn import FasterRCNN
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
    """The state dict of torchvision's vgg16, its fully connected layers a few numbers wide."""
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
    assert set(under(state, "backbone.body.")) == set(vgg16().state_dict())
    assert not under(state, "roi_heads.")


def test_vgg16_answers_the_same_to_the_same_picture(classifier: dict[str, Tensor]) -> None:
    """RGB divided by a deviation for the classifier, BGR less a mean for the paper: one picture, one answer."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    pixels = image.permute(2, 0, 1)[None].float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    theirs = features()[:2]
    theirs.load_state_dict({"0.weight": classifier["features.0.weight"], "0.bias": classifier["features.0.bias"]})
    ours = vgg16()
    ours.load_state_dict(under(checkpoint.from_imagenet(classifier, PAPER_VGG16), "backbone.body."))
    with torch.inference_mode():
        expected = theirs((pixels / 255 - mean) / std)
        found = ours.features[:2](Transform(PAPER_VGG16.transform).normalise(pixels))
    # Beyond the border the one pads with its mean and the other with its own: a little different there.
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-5)


def test_resnet50_and_mobilenet_fit_their_bodies() -> None:
    for classifier, body, config in (
        (torchvision.models.resnet50(weights=None), resnet50(nn.BatchNorm2d), RESNET50_FPN),
        (torchvision.models.mobilenet_v3_large(weights=None), mobilenet_v3_large(nn.BatchNorm2d), MOBILENET_V3_320),
    ):
        state = checkpoint.from_imagenet(classifier.state_dict(), config)
        body.load_state_dict(under(state, "backbone.body."))


def test_other_architectures_are_refused(classifier: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"Not the ImageNet weights of torchvision's resnet50: layer4\.2"):
        checkpoint.from_imagenet(classifier, RESNET50_FPN)
    with pytest.raises(CheckpointError, match="efficientnet_lite0"):
        checkpoint.from_imagenet(classifier, LITE)


def test_a_partial_load_starts_training() -> None:
    config = replace(MOBILENET_V3_320, num_classes=3)
    model = FasterRCNN(config)
    state = torchvision.models.mobilenet_v3_large(weights=None).state_dict()
    missing = checkpoint.load_into(model, checkpoint.from_imagenet(state, config), partial=True)
    assert {key.split(".")[0] for key in missing} == {"backbone", "rpn", "roi_heads"}
    assert not any(key.startswith("backbone.body.") for key in missing)
    assert torch.equal(model.state_dict()["backbone.body.0.0.weight"], state["features.0.0.weight"])


class TestImport:
    @pytest.fixture
    def stranger(self, tmp_path: Path) -> Path:
        """Three classes, under torchvision's old keys."""
        state = FasterRCNN(MOBILENET_V3_320.with_classes(3)).state_dict()
        torch.save(
            {key.replace("rpn.head.conv.0.0.", "rpn.head.conv."): state[key] for key in state}, tmp_path / "x.pth"
        )
        return tmp_path / "x.pth"

    def test_becomes_ours(self, stranger: Path, tmp_path: Path) -> None:
        target = tmp_path / "ours.safetensors"
        digest = checkpoint.import_file(stranger, target, preset="MOBILENET_V3_320", classes=("cat", "dog"))
        found = checkpoint.resolve(target)
        assert (found.preset, found.classes) == ("MOBILENET_V3_320", ("__background__", "cat", "dog"))
        assert digest == checkpoint.sha256(target)
        checkpoint.load_into(FasterRCNN(MOBILENET_V3_320.with_classes(3)), checkpoint.read_state(found))

    def test_the_keys_tell_the_preset_and_the_file_beside_the_classes(self, stranger: Path, tmp_path: Path) -> None:
        (tmp_path / "x.classes.txt").write_text("cat\ndog\n")
        checkpoint.import_file(stranger, tmp_path / "ours.safetensors")
        assert checkpoint.resolve(tmp_path / "ours.safetensors").preset == "MOBILENET_V3_FPN"

    def test_what_does_not_fit_is_not_written(self, stranger: Path, tmp_path: Path) -> None:
        target = tmp_path / "ours.safetensors"
        with pytest.raises(CheckpointError, match="trained for 3 classes"):
            checkpoint.import_file(stranger, target, classes=("cat",))
        with pytest.raises(CheckpointError, match="look like preset MOBILENET_V3_FPN, and the model is LITE"):
            checkpoint.import_file(stranger, target, preset="LITE", classes=("cat", "dog"))
        with pytest.raises(CheckpointError, match="give one of"):
            checkpoint.import_file(stranger, target, preset="NONE", classes=("cat", "dog"))
        assert not target.exists()


def test_every_preset_is_told_by_its_keys() -> None:
    with torch.device("meta"):
        for preset in PRESETS:
            larger = "MOBILENET_V3_FPN" if preset is MOBILENET_V3_320 else preset.name
            assert checkpoint.preset_of(FasterRCNN(preset).state_dict()) == larger
