"""State dicts are loaded, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from model import checkpoint
from model.checkpoint import CheckpointError
from model.faster_rcnn import FasterRCNN
from model.presets import LITE, MOBILENET_V3_320, PRESETS


class Toy(nn.Module):
    """A module with the outermost names of a detector and few weights."""

    def __init__(self, classes: int = 3, width: int = 4) -> None:
        super().__init__()
        self.rpn = nn.ModuleDict({"head": nn.ModuleDict({"conv": nn.Sequential(nn.Sequential(nn.Conv2d(2, 2, 3)))})})
        fpn = nn.ModuleDict({"inner_blocks": nn.ModuleList([nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))])})
        self.backbone = nn.ModuleDict({"fpn": fpn})
        predictor = nn.ModuleDict({"cls_score": nn.Linear(width, classes), "bbox_pred": nn.Linear(width, 4 * classes)})
        self.roi_heads = nn.ModuleDict({"box_predictor": predictor})


class TestLoadInto:
    def test_a_state_dict_is_copied_into_the_model(self) -> None:
        source, model = Toy(), Toy()
        assert checkpoint.load_into(model, source.state_dict()) == ()
        for key, value in model.state_dict().items():
            assert torch.equal(value, source.state_dict()[key])

    def test_old_keys_and_those_of_data_parallel_are_renamed(self) -> None:
        source, model = Toy(), Toy()
        old = {
            "module."
            + key.replace("conv.0.0.", "conv.").replace("backbone.fpn.inner_blocks.0.0.", "fpn.inner_blocks.0."): value
            for key, value in source.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        assert "module.rpn.head.conv.weight" in old
        assert "module.fpn.inner_blocks.0.weight" in old
        checkpoint.load_into(model, old)
        assert torch.equal(model.state_dict()["rpn.head.conv.0.0.weight"], old["module.rpn.head.conv.weight"])
        assert torch.equal(
            model.state_dict()["backbone.fpn.inner_blocks.0.0.weight"], old["module.fpn.inner_blocks.0.weight"]
        )

    def test_a_part_of_a_state_dict_is_loaded_on_request(self) -> None:
        state, model = Toy().state_dict(), Toy()
        part = {key: value for key, value in state.items() if key.startswith("rpn.")}
        missing = checkpoint.load_into(model, part, partial=True)
        assert "roi_heads.box_predictor.cls_score.weight" in missing
        assert not any(key.startswith("rpn.") or key.endswith("num_batches_tracked") for key in missing)
        with pytest.raises(CheckpointError, match="it has head, which the model does not have"):
            checkpoint.load_into(model, {"head": torch.ones(1)}, partial=True)

    @pytest.mark.parametrize(
        ("spoil", "sentences"),
        [
            (lambda s: s.pop("rpn.head.conv.0.0.bias"), [r"it lacks rpn\.head\.conv\.0\.0\.bias", "cut off"]),
            (lambda s: s.update(extra=torch.ones(1)), ["it has extra, which the model does not have"]),
            (
                lambda s: s.update({"rpn.head.conv.0.0.weight": torch.ones(3, 2, 3, 3)}),
                [r"rpn\.head\.conv\.0\.0\.weight \(3, 2, 3, 3\) where the model's is \(2, 2, 3, 3\)", "another width"],
            ),
            (
                lambda s: s["rpn.head.conv.0.0.bias"].fill_(float("nan")),
                [r"NaN or infinity in rpn\.head\.conv\.0\.0\.bias", "diverged"],
            ),
            (lambda s: s.update({"fc.weight": torch.ones(1)}), ["ImageNet classifier's and not a detector's"]),
        ],
    )
    def test_refusals_name_keys_and_cause(
        self, spoil: Callable[[dict[str, Tensor]], object], sentences: list[str]
    ) -> None:
        model = Toy()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        state = Toy().state_dict()
        spoil(state)
        for sentence in sentences:
            with pytest.raises(CheckpointError, match=sentence):
                checkpoint.load_into(model, state)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "nothing changed"

    def test_another_number_of_classes_is_named(self) -> None:
        with pytest.raises(CheckpointError, match=r"trained for 21 classes, background counted, .* made for 3"):
            checkpoint.load_into(Toy(classes=3), Toy(classes=21).state_dict())

    def test_another_preset_is_named(self) -> None:
        with torch.device("meta"):
            model, state = FasterRCNN(LITE.with_classes(3)), FasterRCNN(MOBILENET_V3_320.with_classes(3)).state_dict()
        state = {key: torch.zeros(value.shape) for key, value in state.items()}
        with pytest.raises(CheckpointError, match="look like preset MOBILENET_V3_FPN, and the model is LITE"):
            checkpoint.load_into(model, state)


def test_every_preset_is_identified_by_its_keys() -> None:
    with torch.device("meta"):
        for preset in PRESETS:
            # Both MobileNets have the same keys: the larger is assumed.
            expected = "MOBILENET_V3_FPN" if preset is MOBILENET_V3_320 else preset.name
            assert checkpoint.identify_preset(FasterRCNN(preset).state_dict()) == expected


def test_old_keys_identify_a_preset_too() -> None:
    with torch.device("meta"):
        keys = FasterRCNN(MOBILENET_V3_320).state_dict()
    old = [f"module.{key.replace('rpn.head.conv.0.0.', 'rpn.head.conv.')}" for key in keys]
    assert checkpoint.identify_preset(old) == "MOBILENET_V3_FPN"
    assert checkpoint.identify_preset(["layer.weight"]) is None
