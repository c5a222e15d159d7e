"""The four losses, against values worked out by hand."""

import math

import pytest
import torch

from model.faster_rcnn import FasterRCNN
from model.presets import LITE
from model.structures import ImageBatch
from model.training.losses import joint_losses, roi_losses, rpn_losses
from model.training.targets import AnchorTargets, RegionTargets, Truth


def test_objectness_is_the_mean_log_loss_over_the_sampled_anchors() -> None:
    logits = torch.tensor([[math.log(3), 0.0, 50.0]])  # probabilities 3/4, 1/2; the third is not sampled
    targets = AnchorTargets(torch.tensor([0]), torch.tensor([1]), torch.zeros(1, 4))
    objectness, _ = rpn_losses(logits, torch.zeros(1, 3, 4), [targets], beta=1 / 9)
    assert float(objectness) == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)


def test_offsets_are_smooth_l1_over_the_positives_divided_by_all_sampled() -> None:
    # Against zero with beta 1/9: |d| - 1/18 beyond beta, 4.5 d^2 within.
    deltas = torch.tensor([[[1.0, 0.1, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]])
    targets = AnchorTargets(torch.tensor([0]), torch.tensor([1]), torch.zeros(1, 4))
    _, box = rpn_losses(torch.zeros(1, 2), deltas, [targets], beta=1 / 9)
    assert float(box) == pytest.approx(((1 - 1 / 18) + 4.5 * 0.01) / 2)


def test_classes_are_cross_entropy_over_all_regions() -> None:
    logits = torch.log(torch.tensor([[0.2, 0.8], [0.5, 0.5]]))
    targets = RegionTargets(torch.zeros(2, 4), torch.tensor([1, 0]), torch.zeros(2, 4))
    classes, _ = roi_losses(logits, torch.zeros(2, 2, 4), [targets], beta=1.0)
    assert float(classes) == pytest.approx((math.log(1 / 0.8) + math.log(2)) / 2)


def test_only_the_offsets_of_a_foreground_regions_own_class_learn() -> None:
    offsets = torch.zeros(2, 3, 4)
    offsets[0, 1] = 7.0  # another class's
    offsets[0, 2] = torch.tensor([2.0, 0.5, 0.0, 0.0])
    offsets[1] = 7.0  # background
    targets = RegionTargets(torch.zeros(2, 4), torch.tensor([2, 0]), torch.zeros(2, 4))
    _, box = roi_losses(torch.zeros(2, 3), offsets, [targets], beta=1.0)
    assert float(box) == pytest.approx((1.5 + 0.125) / 2)


def test_offset_losses_without_positives_and_losses_without_regions_are_zero() -> None:
    anchors = AnchorTargets(torch.zeros(0, dtype=torch.int64), torch.arange(256), torch.zeros(0, 4))
    losses = rpn_losses(torch.zeros(1, 600), torch.zeros(1, 600, 4), [anchors], beta=1 / 9)
    assert [float(loss) for loss in losses] == pytest.approx([math.log(2), 0.0])
    for count, expected in ((512, math.log(3)), (0, 0.0)):
        regions = RegionTargets(torch.zeros(count, 4), torch.zeros(count, dtype=torch.int64), torch.zeros(count, 4))
        losses = roi_losses(torch.zeros(count, 3), torch.zeros(count, 3, 4), [regions], beta=1 / 9)
        assert [float(loss) for loss in losses] == pytest.approx([expected, 0.0])


def test_a_batch_without_objects_has_finite_losses_and_gradients() -> None:
    # Means over no sample would be NaN.
    torch.manual_seed(0)
    model = FasterRCNN(LITE.with_classes(3)).train()
    size = torch.tensor([[64, 64]])
    batch = ImageBatch(torch.randn(1, 3, 64, 64), size, size)
    no_objects = Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4), (64, 64))
    losses = joint_losses(model, batch, [no_objects], [torch.Generator().manual_seed(0)])
    losses.total().backward()
    assert losses.rpn_box.item() == losses.roi_box.item() == 0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_all_four_losses_reach_the_backbone() -> None:
    torch.manual_seed(0)
    model = FasterRCNN(LITE.with_classes(3)).train()
    size = torch.tensor([[64, 64]])
    batch = ImageBatch(torch.randn(1, 3, 64, 64), size, size)
    truth = Truth(torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([2]), torch.zeros(0, 4), (64, 64))
    losses = joint_losses(model, batch, [truth], [torch.Generator().manual_seed(0)])
    weight = model.backbone.fpn.layer_blocks[0][0].weight
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
        assert gradient.abs().max() > 0
