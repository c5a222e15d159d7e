"""A process's memory settings: freed memory is kept until it is released, and oneDNN keeps its kernels."""

import os
import subprocess
import sys

import pytest
import torch

from model.runtime import malloc
from model.runtime.cpu.onednn_conv import can_pack
from model.runtime.malloc import configure_malloc

# In processes of their own: glibc's settings last as long as the process, and oneDNN reads its own once.
_FREED_BLOCKS = """
import resource
import numpy as np
from model.runtime.malloc import configure_malloc, release_free_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() >> 20

configured = configure_malloc()
before = resident()
blocks = [np.ones(50_000) for _ in range(800)]  # 305 MiB
full = resident()
del blocks[::2]
after_free = resident()
released = release_free_memory()
print(int(configured), int(released), full - before, full - after_free, full - resident())
"""
# More shapes than oneDNN keeps kernels for by default, each twice.
_MANY_SHAPES = """
import torch
from torch import nn
from model.runtime.malloc import configure_malloc

configure_malloc()
conv = nn.Conv2d(1, 1, 1).eval().requires_grad_(False)
with torch.inference_mode():
    for turn in range(2):
        print("turn", turn, flush=True)
        for width in range(1, 1201):
            torch.mkldnn_convolution(torch.ones(1, 1, 1, width), conv.weight, None, [0, 0], [1, 1], [1, 1], 1)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
def test_freed_blocks_are_kept_and_even_the_gaps_between_blocks_in_use_are_released() -> None:
    run = subprocess.run([sys.executable, "-c", _FREED_BLOCKS], capture_output=True, text=True, check=True)
    configured, released, allocated, freed_at_once, freed = map(int, run.stdout.split())
    assert (configured, released) == (1, 1)
    assert allocated > 290
    assert freed_at_once < 30
    assert freed > 130


@pytest.mark.skipif(not can_pack(torch.device("cpu"), torch.float32), reason="this torch has no oneDNN")
def test_a_shape_that_comes_again_needs_no_new_kernel() -> None:
    environment = {name: value for name, value in os.environ.items() if "PRIMITIVE_CACHE" not in name}
    run = subprocess.run(
        [sys.executable, "-c", _MANY_SHAPES],
        env=environment | {"ONEDNN_VERBOSE": "profile_create", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = run.stdout.split("turn 1")
    compiled = [text.count("create:cache_miss,cpu,convolution") for text in (first, second)]
    assert compiled == [1200, 0]


def test_a_capacity_that_an_operator_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc, "_libc_function", lambda name: None)  # glibc's settings would stay in this process
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "77")
    configure_malloc()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "77"
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    monkeypatch.setenv("DNNL_PRIMITIVE_CACHE_CAPACITY", "77")
    configure_malloc()
    assert "ONEDNN_PRIMITIVE_CACHE_CAPACITY" not in os.environ


def test_elsewhere_than_on_glibc_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "77")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not configure_malloc()
    assert not malloc.release_free_memory()
