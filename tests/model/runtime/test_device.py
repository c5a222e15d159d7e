"""The choice of the device, for each state of the driver and the GPUs, with stand-ins for what torch reports."""

import logging
import warnings

import pytest
import torch

from model.detector import Detector, DeviceError
from model.runtime.device import choose_device, choose_devices, has_kernels

# What torch 2.14.1 was built for, and its messages for the states of a driver.
BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
NO_DRIVER = "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver"
TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by downloading "
    "and installing a new version from the URL: http://www.nvidia.com/Download/index.aspx"
)
NOT_VISIBLE = "No CUDA GPUs are available"
UNKNOWN = "CUDA unknown error - this may be due to an incorrectly set up environment.\nMore lines."
NUMBERED = (
    "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before calling NumCudaDevices() that "
    "might have already set an error? Error 802: system not yet initialized"
)


@pytest.fixture
def machine(monkeypatch):
    """Make torch see GPUs of these compute capabilities, or fail to start CUDA with this message."""

    def simulate(*capabilities: tuple[int, int], failure: str | None = None, built: bool = True) -> None:
        def init() -> None:
            warnings.warn("CUDA initialization: torch says it in a warning too", UserWarning, stacklevel=1)
            if failure is not None:
                raise RuntimeError(failure)

        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: BUILT)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU number {index}")

    return simulate


@pytest.mark.parametrize(
    ("failure", "parts"),
    [
        (NO_DRIVER, ["there is no NVIDIA driver", "version 580 or later, for CUDA 13.0", "--gpus all", "device cpu"]),
        (TOO_OLD, ["too old (it supports CUDA up to 11.4)", "needs CUDA 13.0", "version 580 or later", "device cpu"]),
        (NOT_VISIBLE, ["no GPU is visible", "CUDA_VISIBLE_DEVICES", "--gpus all", "device cpu"]),
        (UNKNOWN, ["CUDA does not start (CUDA unknown error", "nvidia-smi", "device cpu"]),
        (NUMBERED, ["CUDA does not start (Error 802: system not yet initialized). See"]),
    ],
)
@pytest.mark.parametrize("requested", ["cuda", "cuda:0"])
def test_an_unusable_driver_is_explained(machine, requested, failure, parts):
    machine(failure=failure)
    with pytest.raises(DeviceError) as caught:
        choose_device(requested)
    for part in (f"The device {requested} cannot be used", *parts):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_torch_built_for_cpus_is_reported(machine):
    machine(built=False)
    with pytest.raises(DeviceError, match=r"The device cuda cannot be used: torch .* is a build for the CPU alone"):
        choose_device("cuda")
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(("count", "counted"), [(1, "torch sees 1 GPU, and"), (2, "torch sees 2 GPUs, and")])
def test_an_index_without_a_gpu_is_told_how_many_there_are(machine, count, counted):
    machine(*[(9, 0)] * count)
    with pytest.raises(DeviceError, match=rf"There is no device cuda:7: {counted} the largest index is {count - 1}\."):
        choose_device("cuda:7")
    with pytest.raises(DeviceError, match="There is no device cuda:300"):  # torch.device makes it cuda:44
        choose_device("cuda:300")


@pytest.mark.parametrize("requested", ["tpu", "mps", "cuda:-1", "cuda:one", "CUDA", ""])
def test_an_unknown_device_is_refused(requested):
    with pytest.raises(DeviceError, match="The device must be auto, cpu, cuda or cuda:N"):
        choose_device(requested)


def test_a_gpu_without_kernels_is_named_with_what_there_is(machine):
    machine((6, 1))
    with pytest.raises(DeviceError) as caught:
        choose_device("cuda")
    for part in ("cuda:0 (GPU number 0)", "compute capability 6.1", "sm_75, sm_80", "device cpu"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("capability", "built", "runs"),
    [
        ((7, 5), BUILT, True),
        ((7, 0), BUILT, False),
        ((8, 9), BUILT, True),  # sm_86 runs on every later 8.x
        ((8, 7), ["sm_89"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 1), ["sm_90a"], False),  # a: its own capability alone
        ((10, 3), ["sm_100f"], True),
        ((12, 1), BUILT, True),
        ((13, 0), BUILT, False),
        ((13, 0), [*BUILT, "compute_120"], True),  # PTX is compiled for what came later
        ((7, 5), ["compute_80"], False),
        ((9, 0), ["gfx942"], True),  # an unknown name: nothing is refused
    ],
)
def test_which_gpus_run_which_code(capability, built, runs):
    assert has_kernels(capability, built) is runs


@pytest.mark.parametrize(
    ("requested", "devices"),
    [
        ("auto", ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda", ("cuda:0", "cuda:1", "cuda:2")),
        ("cuda:1", ("cuda:1",)),
        ("cpu", ("cpu",)),
    ],
)
def test_which_devices_are_meant(machine, requested, devices):
    machine((8, 0), (9, 0), (12, 0))
    assert choose_devices(requested) == devices
    assert choose_device(requested) == torch.device(devices[0])


@pytest.mark.parametrize("failure", [TOO_OLD, UNKNOWN])
def test_auto_logs_once_why_a_gpu_is_not_used(machine, caplog, failure):
    machine(failure=failure)
    assert choose_devices("auto") == ("cpu",)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("No GPU is used, the CPU is: ")


@pytest.mark.parametrize("failure", [NO_DRIVER, NOT_VISIBLE])
def test_auto_is_silent_where_there_is_no_gpu(machine, caplog, failure):
    machine(failure=failure)
    assert choose_devices("auto") == ("cpu",)
    assert not caplog.records


def test_auto_leaves_out_a_gpu_without_kernels(machine, caplog):
    machine((6, 1))
    assert choose_devices("auto") == ("cpu",)
    assert "compute capability 6.1" in caplog.records[-1].getMessage()
    machine((6, 1), (9, 0))
    assert choose_devices("auto") == ("cuda:1",)
    assert caplog.records[-1].getMessage().startswith("Not every GPU is used: cuda:0")
    with pytest.raises(DeviceError, match=r"cuda:0 .* leave the GPU out with CUDA_VISIBLE_DEVICES"):
        choose_devices("cuda")  # which means every one
    assert choose_devices("cuda:1") == ("cuda:1",)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_the_message_of_the_installed_torch_is_understood():
    with pytest.raises(DeviceError, match=r"no NVIDIA driver|no GPU is visible|build for the CPU alone|too old"):
        Detector.random("LITE", device="cuda")


@pytest.mark.gpu
def test_a_real_gpu_is_chosen_and_an_index_beyond_it_refused():
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    with pytest.raises(DeviceError, match=f"the largest index is {torch.cuda.device_count() - 1}"):
        choose_device(f"cuda:{torch.cuda.device_count()}")
