"""The choice of the device, and an explanation for each reason that a GPU cannot be used."""

from __future__ import annotations

import logging
import re
import warnings
from dataclasses import dataclass

import torch

log = logging.getLogger("frcnn.device")

# NVIDIA's release notes: the first driver branch on Linux that runs programs of this major version of CUDA.
_DRIVER_BRANCHES = {12: 525, 13: 580}


class DeviceError(ValueError):
    """The requested device cannot be used here; the message says why and what to do."""


@dataclass(frozen=True)
class _Unusable:
    """The reason why torch can use no GPU. present: a GPU is visible, or a driver is installed for one."""

    sentence: str
    present: bool


def choose_device(requested: str) -> torch.device:
    """Return the device for ``requested``: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    ``auto`` is the first GPU that can be used, or the CPU where there is none. Raises ``DeviceError``.
    """
    return torch.device(choose_devices(requested)[0])


def choose_devices(requested: str) -> tuple[str, ...]:
    """Return the names of all devices that ``requested`` means, each ``cpu`` or ``cuda:N``; at least one.

    ``cuda`` is every visible GPU. ``auto`` is every visible GPU that can be used, or the CPU where there is none; it
    logs a warning where a GPU is present and cannot be used. Raises ``DeviceError``, for ``cuda`` also where one of
    several GPUs cannot be used.
    """
    named = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", requested)
    if named is None:
        raise DeviceError(f"The device must be auto, cpu, cuda or cuda:N, not {requested!r}.")
    if requested == "cpu":
        return ("cpu",)
    unusable = _start_cuda()
    if requested == "auto":
        return _choose_automatically(unusable)
    if unusable is not None:
        raise DeviceError(f"The device {requested} cannot be used: {unusable.sentence}")
    count = torch.cuda.device_count()
    if named[1] is None:
        indices = range(count)
    elif (index := int(named[1])) < count:
        indices = range(index, index + 1)
    else:
        raise DeviceError(
            f"There is no device {requested}: torch sees {count} GPU{'s' if count > 1 else ''}, and the largest index "
            f"is {count - 1}. Choose a smaller index, or make more GPUs visible (CUDA_VISIBLE_DEVICES, and for a "
            "container --gpus)."
        )
    for index in indices:
        if (problem := _missing_kernels(index)) is not None:
            raise DeviceError(problem)
    return tuple(f"cuda:{index}" for index in indices)


def _choose_automatically(unusable: _Unusable | None) -> tuple[str, ...]:
    """Return the usable GPUs, or the CPU; log a warning for each GPU that is left out."""
    if unusable is not None:
        if unusable.present:
            log.warning("No GPU is used, the CPU is: %s", unusable.sentence)
        return ("cpu",)
    problems = {index: _missing_kernels(index) for index in range(torch.cuda.device_count())}
    usable = tuple(f"cuda:{index}" for index, problem in problems.items() if problem is None)
    reasons = " ".join(problem for problem in problems.values() if problem is not None)
    if reasons:
        log.warning("%s: %s", "Not every GPU is used" if usable else "No GPU is used, the CPU is", reasons)
    return usable or ("cpu",)


def _start_cuda() -> _Unusable | None:
    """Initialise CUDA; return None where there is at least one GPU then."""
    if not torch.backends.cuda.is_built():
        return _Unusable(
            f"torch {torch.__version__} is a build for the CPU alone. Install torch's CUDA build, or choose the device "
            "cpu.",
            present=False,
        )
    if torch.cuda.is_initialized():
        return None
    try:
        # torch.cuda.is_available() hides why there is no GPU, or tells it in a Python warning.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.init()
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        return _explain(str(error))
    return None


def _explain(message: str) -> _Unusable:
    """Return the reason for, and a remedy against, an error that torch raised when CUDA did not start."""
    if "Found no NVIDIA driver" in message:
        return _Unusable(
            f"there is no NVIDIA driver. Install one ({_driver_needed()}); in a container, start it with --gpus all on "
            "a host that has the driver and the NVIDIA Container Toolkit; or choose the device cpu.",
            present=False,
        )
    if "driver on your system is too old" in message:
        version = re.search(r"found version (\d+)", message)
        supports = "" if version is None else f" (it supports CUDA up to {_readable_version(int(version[1]))})"
        return _Unusable(
            f"the NVIDIA driver is too old{supports}: torch {torch.__version__} needs CUDA {torch.version.cuda}. "
            f"Update the driver ({_driver_needed()}), install a torch built for an older CUDA, or choose the device "
            "cpu.",
            present=True,
        )
    if "No CUDA GPUs are available" in message:
        return _Unusable(
            "there is an NVIDIA driver, and no GPU is visible. Set CUDA_VISIBLE_DEVICES to the GPU's index or UUID, or "
            "unset it; in a container, start it with --gpus all; nvidia-smi -L lists what is there; or choose the "
            "device cpu.",
            present=False,
        )
    numbered = re.search(r"Error \d+: .+", message)  # the text before it is only a guess
    first = (numbered[0] if numbered else next(iter(message.splitlines()), "")).rstrip(". ") or "torch gives no reason"
    return _Unusable(
        f"CUDA does not start ({first}). See whether nvidia-smi works, restart the driver or the host, or choose the "
        "device cpu.",
        present=True,
    )


def _driver_needed() -> str:
    """Name the driver that this torch needs, for a sentence."""
    cuda = torch.version.cuda or "unknown"
    branch = _DRIVER_BRANCHES.get(int(cuda.partition(".")[0])) if cuda[0].isdigit() else None
    return f"for CUDA {cuda}" if branch is None else f"version {branch} or later, for CUDA {cuda}"


def _readable_version(number: int) -> str:
    """Return CUDA's number for a version, as 11040, as people write it: 11.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _missing_kernels(index: int) -> str | None:
    """Return a sentence where this torch has no kernels for the GPU; None where it has."""
    built = torch.cuda.get_arch_list()
    capability = torch.cuda.get_device_capability(index)
    if has_kernels(capability, built):
        return None
    return (
        f"cuda:{index} ({torch.cuda.get_device_name(index)}) has compute capability {capability[0]}.{capability[1]}, "
        f"for which torch {torch.__version__} has no kernels: it was built for {', '.join(built)}. Install a torch "
        "built for this GPU, leave the GPU out with CUDA_VISIBLE_DEVICES, or choose the device cpu."
    )


def has_kernels(capability: tuple[int, int], built: list[str]) -> bool:
    """Return whether a GPU of this compute capability runs code that was built for ``built``, torch's names.

    ``sm_86`` is machine code: it runs on 8.6 and later minor versions of the same major one, but ``sm_90a`` on 9.0
    alone. ``compute_90`` is PTX, which the driver compiles for 9.0 and anything later. True where no name is known.
    """
    codes = [match for name in built if (match := re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", name))]
    return not codes or any(_runs(capability, match) for match in codes)


def _runs(capability: tuple[int, int], code: re.Match[str]) -> bool:
    """Return whether a GPU of this capability runs one kind of code, parsed from torch's name for it."""
    kind, major, minor, suffix = code[1], int(code[2]), int(code[3]), code[4]
    if suffix == "a":
        return capability == (major, minor)
    if kind == "sm" or suffix == "f":
        return capability[0] == major and capability[1] >= minor
    return capability >= (major, minor)
