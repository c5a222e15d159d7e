"""The types that CUDA has kernels for, from the names in the installed libraries."""

import pytest
import torch

from tests.gpu.kernels import kernel_types, torch_cuda, torchvision_ops
from tests.gpu.simulated_gpu import supported_types

FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}

needs_cuda_build = pytest.mark.skipif(torch_cuda() is None, reason="torch is a build for CPUs, without CUDA kernels")


@needs_cuda_build
def test_the_antialiased_resize_has_no_kernel_for_bytes() -> None:
    assert kernel_types(torch_cuda(), "upsample_gen2d_aa_out_frame", "BilinearFilterFunctor") == FLOATS


@needs_cuda_build
def test_the_plain_resize_has_kernels_for_every_float() -> None:
    assert kernel_types(torch_cuda(), "upsample_bilinear2d_out_frame") >= FLOATS


@pytest.mark.parametrize("kernel", ["nms_kernel_impl", "roi_align_forward_kernel_impl"])
def test_torchvisions_operators_have_no_kernel_for_bfloat16(kernel: str) -> None:
    types = kernel_types(torchvision_ops(), kernel)
    if not types:
        pytest.skip("torchvision is a build for CPUs, without CUDA kernels")
    assert types == FLOATS - {torch.bfloat16}


def test_an_unknown_kernel_has_no_types() -> None:
    assert kernel_types(torchvision_ops(), "no_such_kernel_impl") == frozenset()


def test_types_are_listed_where_a_library_has_no_kernels() -> None:
    types = supported_types()
    assert torch.uint8 not in types["aten::_upsample_bilinear2d_aa"]
    assert torch.bfloat16 not in types["torchvision::nms"]
    assert all(torch.float32 in known for known in types.values())
