"""EfficientNet-Lite0: the packaged classifier's norms are folded into the body, and other weights are refused."""

import pytest
import torch
from torch.nn import functional as F

from model.backbones.efficientnet_lite import SPEC, EfficientNetLite, from_imagenet


def test_the_stem_gives_what_the_classifiers_stem_gives_with_its_norm() -> None:
    state = SPEC.packaged_imagenet()
    body = EfficientNetLite().eval()
    prefix = "backbone.body."
    body.load_state_dict({key.removeprefix(prefix): value for key, value in from_imagenet(state).items()})
    pixels = torch.randn(1, 3, 32, 32)
    names = [f"_bn0.{name}" for name in ("running_mean", "running_var", "weight", "bias")]
    with torch.inference_mode():
        convolved = F.conv2d(F.pad(pixels, (0, 1, 0, 1)), state["_conv_stem.weight"], stride=2)
        expected = F.relu6(F.batch_norm(convolved, *(state[name] for name in names), eps=1e-3))
        torch.testing.assert_close(body.stem(pixels), expected, rtol=1e-4, atol=1e-5)


def test_a_classifier_with_other_shapes_is_refused() -> None:
    state = SPEC.packaged_imagenet()
    state["_conv_stem.weight"] = torch.zeros(8, 3, 3, 3)
    with pytest.raises(ValueError, match=r"_conv_stem\.weight has shape \(8, 3, 3, 3\)"):
        from_imagenet(state)
