"""Copies between the host and a device: the values, and what the host waits for."""

import numpy as np
import pytest
import torch

from model.transfer import constant, download, upload
from tests.gpu.simulated_gpu import simulated_gpu

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
def test_uploaded_values_are_downloaded_as_they_were(device: torch.device) -> None:
    with simulated_gpu():
        numbers = upload([[1, 2, 3]], torch.int64, device)
        flags = upload(np.array([True, False]), torch.bool, device)
        halves = upload(torch.tensor([0.5, 7.0]), torch.float16, device)
        assert numbers.device == device
        downloaded = download(flags, numbers[:, ::2], halves, numbers[:, :0], halves[1])
    assert [tensor.tolist() for tensor in downloaded] == [[True, False], [[1, 3]], [0.5, 7.0], [[]], 7.0]
    assert [tensor.dtype for tensor in downloaded[:3]] == [torch.bool, torch.int64, torch.float16]
    assert all(tensor.device == CPU for tensor in downloaded)


def test_the_host_waits_once_for_all_downloads_and_for_no_upload() -> None:
    with simulated_gpu() as gpu:
        gpu.reset()
        tensors = [upload([number], torch.float32, GPU) * 2 for number in range(5)]
        assert gpu.wait_count == 0
        assert [tensor.item() for tensor in download(*tensors)] == [0, 2, 4, 6, 8]
        assert gpu.wait_count == 1


def test_a_constant_is_copied_once_and_may_be_used_in_training() -> None:
    with torch.inference_mode():
        first = constant((1.0, 2.0), CPU)
    assert constant((1.0, 2.0), CPU) is first
    assert not first.is_inference()
    weight = torch.ones(2, requires_grad=True)
    (weight * first).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1, 2]


def test_a_download_of_nothing_returns_nothing() -> None:
    assert download() == ()
