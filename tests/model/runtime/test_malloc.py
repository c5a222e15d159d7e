"""What oneDNN has made for a shape is there when the shape comes again, however many came between."""

import os
import subprocess
import sys

import pytest
import torch

from model.runtime.cpu.onednn_conv import can_pack
from model.runtime.malloc import keep_primitives

# A process of its own: oneDNN reads its settings once. More shapes than it keeps by default, each twice.
_SHAPES = """
import torch
from torch import nn
from model.runtime.malloc import keep_primitives

keep_primitives()
conv = nn.Conv2d(1, 1, 1).eval().requires_grad_(False)
with torch.inference_mode():
    for turn in range(2):
        print("turn", turn, flush=True)
        for width in range(1, 1201):
            torch.mkldnn_convolution(torch.ones(1, 1, 1, width), conv.weight, None, [0, 0], [1, 1], [1, 1], 1)
"""


@pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.float32), reason="this torch has no oneDNN")
def test_a_shape_that_comes_again_needs_no_new_code() -> None:
    environment = {name: value for name, value in os.environ.items() if "PRIMITIVE_CACHE" not in name}
    run = subprocess.run(
        [sys.executable, "-c", _SHAPES],
        env=environment | {"ONEDNN_VERBOSE": "profile_create", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, again = run.stdout.split("turn 1")
    made = [text.count("create:cache_miss,cpu,convolution") for text in (first, again)]
    assert made == [1200, 0]


def test_what_an_operator_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "77")
    keep_primitives()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "77"
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    monkeypatch.setenv("DNNL_PRIMITIVE_CACHE_CAPACITY", "77")
    keep_primitives()
    assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in os.environ
