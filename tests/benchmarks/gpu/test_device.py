import torch

from benchmarks.gpu import device


def test_switches_are_set_back() -> None:
    before = device.switches()
    with device.tf32(True):
        assert torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
        with device.tf32(False):
            assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    assert device.switches() == before
