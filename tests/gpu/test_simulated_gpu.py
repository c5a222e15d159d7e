"""The simulated GPU refuses what CUDA refuses, and counts waits of the host."""

from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional as F
from torchvision import ops as tv_ops

from tests.gpu.simulated_gpu import SimulatedGPU, simulated_gpu


@pytest.fixture
def gpu() -> Iterator[SimulatedGPU]:
    with simulated_gpu() as gpu:
        yield gpu


def test_a_tensor_claims_to_be_on_the_gpu_and_computes(gpu: SimulatedGPU) -> None:
    tensor = torch.arange(3.0).pin_memory().to("cuda", non_blocking=True)
    assert tensor.is_cuda
    assert (tensor * 2 + 1).cpu().tolist() == [1, 3, 5]


def test_operands_on_two_devices_are_refused(gpu: SimulatedGPU) -> None:
    with pytest.raises(RuntimeError, match="same device"):
        torch.ones(2, device="cuda") + torch.ones(2)
    assert (torch.ones(2, device="cuda") + torch.tensor(1.0)).tolist() == [2, 2]  # one number may be on the host


def test_kernels_that_cuda_lacks_are_refused(gpu: SimulatedGPU) -> None:
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8, device="cuda")
    with pytest.raises(NotImplementedError, match=r"_upsample_bilinear2d_aa not implemented for torch\.uint8"):
        F.interpolate(image, size=(4, 4), mode="bilinear", antialias=True)
    boxes = torch.zeros(1, 4, dtype=torch.bfloat16, device="cuda")
    with pytest.raises(NotImplementedError, match=r"nms not implemented for torch\.bfloat16"):
        tv_ops.nms(boxes, boxes[:, 0], 0.5)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: float(x[0]),
        lambda x: bool((x > 0).any()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.index_put_((x > 0,), torch.tensor(1.0)),
        lambda x: torch.bincount(x.long()),
        lambda x: x + torch.tensor([1.0], device="cuda"),
        lambda x: tv_ops.nms(x[:4].view(1, 4), x[:1], 0.5),
    ],
)
def test_reading_from_the_device_waits(gpu: SimulatedGPU, read) -> None:  # type: ignore[no-untyped-def]
    tensor = torch.ones(4, device="cuda")
    gpu.reset()
    tensor = tensor + 0
    read(tensor)
    assert gpu.wait_count == 1


def test_operators_that_stay_on_the_device_do_not_wait(gpu: SimulatedGPU) -> None:
    tensor = torch.arange(4.0).pin_memory().to("cuda", non_blocking=True)
    index = tensor.long().sort(descending=True).indices
    torch.nonzero_static(tensor > 1, size=2)
    tensor[index] = tensor.softmax(0)
    torch.where(tensor > 0, tensor, 0.0).topk(2)
    assert gpu.wait_count == 0
    assert gpu.launches >= 9


def test_a_copy_to_the_host_that_does_not_block_is_garbage_until_the_host_has_waited(gpu: SimulatedGPU) -> None:
    late = torch.arange(3.0, device="cuda").to("cpu", non_blocking=True)
    assert late.tolist() == [99, 99, 99]
    torch.cuda.synchronize()
    assert late.tolist() == [0, 1, 2]


def test_waiting_with_nothing_pending_is_no_wait(gpu: SimulatedGPU) -> None:
    torch.ones(1, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.synchronize()
    assert gpu.wait_count == 1


def test_half_precision_is_computed_in_float32_and_rounded_once(gpu: SimulatedGPU) -> None:
    a = torch.full((1, 4096), 1.0).half()
    product = a.to("cuda") @ a.t().to("cuda")
    assert product.dtype == torch.float16
    assert product.item() == 4096  # a sum in float16 would have stopped at 2048


def test_a_tensor_that_is_changed_in_place_is_the_same_tensor(gpu: SimulatedGPU) -> None:
    tensor = torch.zeros(2, 3, device="cuda")
    assert tensor.add_(1) is tensor
    tensor[0] = 5
    assert tensor.tolist() == [[5, 5, 5], [1, 1, 1]]
    torch.add(tensor, 1, out=tensor)
    assert tensor.tolist() == [[6, 6, 6], [2, 2, 2]]


def test_another_thread_must_enter_the_gpu_itself(gpu: SimulatedGPU) -> None:
    tensor = torch.ones(1, device="cuda")
    with torch.utils._python_dispatch._disable_current_modes(), pytest.raises(RuntimeError, match=r"gpu\.thread"):
        tensor + 1
