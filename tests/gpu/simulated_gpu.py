"""A simulated GPU: tensors that claim ``cuda:0`` and compute on the CPU, and a count of what would make the host wait.

    with simulated_gpu() as gpu:
        detector = Detector.from_checkpoint("lite-voc20", device="cuda")
        gpu.reset()
        detector.detect(images)
        print(gpu.waits, gpu.launches)

It raises where CUDA would: for operands on two devices, and for kernels that CUDA lacks for a type (``kernels``). It
fills memory that a copy without a wait writes to with garbage until the host has waited, so that a value that is read
too early is wrong. float16 and bfloat16 are computed in float32 and rounded after each operator.

It cannot show: streams and their order, TF32, how much memory is used, missing kernels that are not listed.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from tests.gpu.kernels import kernel_types, torch_cuda, torchvision_ops

CUDA = torch.device("cuda", 0)
_REPOSITORY = str(Path(__file__).resolve().parents[2])
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})

# Operators whose kernels read a size or a value back to the host (ATen/native/cuda, torchvision/csrc/ops/cuda).
_WAIT = {
    "aten::nonzero",
    "aten::_local_scalar_dense",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::bincount",
    "aten::equal",
    "aten::repeat_interleave",
    "torchvision::nms",
}
# May have operands on both devices: copies, and indices on the host, which CUDA copies over.
_BOTH_DEVICES = {"aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put_", "aten::_index_put_impl_"}
# Slow or missing in half precision on a CPU; computed in float32 and rounded once. All else rounds by itself.
_HALF_IN_FLOAT = {
    "aten::convolution",
    "aten::addmm",
    "aten::mm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_embedding_bag",
    "aten::_embedding_bag_forward_only",
    "aten::max_pool2d_with_indices",
}


def supported_types() -> dict[str, frozenset[torch.dtype]]:
    """List the types that CUDA has kernels for, by operator, as read from the libraries.

    Where a library has no CUDA kernels, the list is what torch 2.11 to 2.14 and torchvision 0.26 to 0.29 have.
    """
    aten, vision = torch_cuda(), torchvision_ops()
    three = frozenset({torch.float16, torch.float32, torch.float64})
    aa = aten and kernel_types(aten, "upsample_gen2d_aa_out_frame", "BilinearFilterFunctor")
    plain = aten and kernel_types(aten, "upsample_bilinear2d_out_frame")
    nms = vision and kernel_types(vision, "nms_kernel_impl")
    align = vision and kernel_types(vision, "roi_align_forward_kernel_impl")
    return {
        "aten::_upsample_bilinear2d_aa": aa or _FLOATS,
        "aten::upsample_bilinear2d": (plain or _FLOATS) | {torch.uint8},
        "torchvision::nms": nms or three,
        "torchvision::roi_align": align or three,
    }


class SimulatedTensor(torch.Tensor):
    """A tensor that claims to be on ``cuda:0``; ``host`` holds its values."""

    host: torch.Tensor

    @staticmethod
    def __new__(cls, host: torch.Tensor) -> SimulatedTensor:
        self = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            device=CUDA,
        )
        self.host = host
        return self  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, *_: Any) -> Any:
        raise RuntimeError(f"{func} was called on a simulated tensor in a thread without `gpu.thread()`.")


class SimulatedGPU:
    """A record of what happened on the simulated GPU.

    launches: kernels and copies, at the least: an operator may need several. waits: by (file:line, operator), how often
    the host waited. pending: copies to the host that have not been waited for.
    """

    def __init__(self) -> None:
        self.kernels = supported_types()
        self.pending: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.launches = 0
        self.waits: Counter[tuple[str, str]] = Counter()
        self._busy = False

    @property
    def wait_count(self) -> int:
        """Return how often the host waited."""
        return sum(self.waits.values())

    def launch(self) -> None:
        """Note that a kernel or a copy was enqueued."""
        self.launches += 1
        self._busy = True

    def wait(self, reason: str) -> None:
        """Note that the host waits, unless there is nothing to wait for; copies to the host arrive."""
        for target, values in self.pending:
            target.copy_(values)
        self.pending.clear()
        if self._busy:
            self.waits[_caller(), reason] += 1
        self._busy = False

    @contextlib.contextmanager
    def thread(self) -> Iterator[None]:
        """Let this thread use the GPU."""
        with _Dispatch(self):
            yield


class _Dispatch(TorchDispatchMode):
    """Run operators on simulated tensors, in the thread that entered it."""

    def __init__(self, gpu: SimulatedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        tensors = [leaf for leaf in tree_iter((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        ours = [tensor for tensor in tensors if isinstance(tensor, SimulatedTensor)]
        target = kwargs.get("device")
        if not ours and (target is None or torch.device(target).type != "cuda"):
            return func(*args, **kwargs)
        name = func._schema.name
        self._check(name, tensors, ours)
        if target is not None:
            kwargs["device"] = torch.device("cpu")
        if name == "aten::_to_copy" and target is not None and (torch.device(target).type == "cpu" or not ours):
            return self._copy_between(func, args, kwargs, to_host=bool(ours))
        self._count(func, name, args, tensors)
        return self._run(func, name, args, kwargs)

    def _check(self, name: str, tensors: list[torch.Tensor], ours: list[SimulatedTensor]) -> None:
        """Raise where CUDA would."""
        hosts = [tensor for tensor in tensors if not isinstance(tensor, SimulatedTensor)]
        if ours and name not in _BOTH_DEVICES and any(tensor.dim() for tensor in hosts):
            raise RuntimeError(f"{name}: expected all tensors to be on the same device, but some are on cpu")
        if name in self.gpu.kernels and ours[0].dtype not in self.gpu.kernels[name]:
            raise NotImplementedError(f"{name} not implemented for {ours[0].dtype} on CUDA")

    def _count(self, func: Any, name: str, args: Any, tensors: list[torch.Tensor]) -> None:
        is_index = name.startswith(("aten::index", "aten::_index"))
        mask = is_index and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in tree_iter(args[1])
        )
        crossing = name in _BOTH_DEVICES and any(
            tensor.dim() and not isinstance(tensor, SimulatedTensor) and not _pinned(tensor) for tensor in tensors
        )
        alias = func._schema.returns[0].alias_info if func._schema.returns else None
        if (alias is None or alias.is_write) and "empty" not in name:
            self.gpu.launch()
        if name in _WAIT or mask or crossing:
            self.gpu.wait(name)

    def _copy_between(self, func: Any, args: Any, kwargs: Any, *, to_host: bool) -> torch.Tensor:
        """Copy to or from the host: without a wait where it need not block, and the host's memory is pinned."""
        free = kwargs.pop("non_blocking", False)
        source = args[0]
        copy: torch.Tensor = func(_host(source), *args[1:], **kwargs)
        self.gpu.launch()
        if not to_host:
            if not (free and _pinned(source)) and source.numel():
                self.gpu.wait("copy to the device")
            return SimulatedTensor(copy)
        if not free:
            self.gpu.wait("copy to the host")
            return copy
        late = torch.full_like(copy, 99)
        self.gpu.pending.append((late, copy))
        return late

    def _run(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        known: dict[int, SimulatedTensor] = {}

        def enter(leaf: Any) -> Any:
            if isinstance(leaf, SimulatedTensor):
                known[id(leaf.host)] = leaf
                return leaf.host
            return leaf

        args, kwargs = tree_map(enter, args), tree_map(enter, kwargs)
        half = next((known[key].dtype for key in known if known[key].dtype in (torch.float16, torch.bfloat16)), None)
        if half is not None and name in _HALF_IN_FLOAT:
            args, kwargs = tree_map(_wide, args), tree_map(_wide, kwargs)
            result = tree_map(lambda leaf: _narrow(leaf, half), func(*args, **kwargs))
        else:
            result = func(*args, **kwargs)
        if name == "aten::_local_scalar_dense":
            return result
        inference = torch.is_inference_mode_enabled() and all(tensor.is_inference() for tensor in known.values())

        def leave(leaf: Any) -> Any:
            if not isinstance(leaf, torch.Tensor):
                return leaf
            same = known.get(id(leaf))  # in place, and `out=`: the tensor of the caller
            if same is not None:
                return same
            # A view of a tensor from outside inference mode is no inference tensor either.
            with torch.inference_mode(inference):
                return SimulatedTensor(leaf)

        return tree_map(leave, result)


def _host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.host if isinstance(tensor, SimulatedTensor) else tensor


def _pinned(tensor: torch.Tensor) -> bool:
    return bool(getattr(tensor, "simulated_pinned", False))


def _wide(leaf: Any) -> Any:
    is_half = isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float16, torch.bfloat16)
    return leaf.float() if is_half else leaf


def _narrow(leaf: Any, dtype: torch.dtype) -> Any:
    return leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float32 else leaf


def _caller() -> str:
    """Name the innermost line of the project that is running."""
    frames = [
        frame
        for frame in traceback.extract_stack()
        if frame.filename.startswith((f"{_REPOSITORY}/model", f"{_REPOSITORY}/service"))
    ]
    return f"{frames[-1].filename.removeprefix(_REPOSITORY)[1:]}:{frames[-1].lineno}" if frames else "?"


class _Stream:
    cuda_stream = 0

    def __init__(self, gpu: SimulatedGPU) -> None:
        self._gpu = gpu

    def synchronize(self) -> None:
        self._gpu.wait("stream.synchronize")


@contextlib.contextmanager
def simulated_gpu(capability: tuple[int, int] = (9, 0)) -> Iterator[SimulatedGPU]:
    """Let ``torch.cuda`` claim one device of this compute capability, for this thread (others: ``gpu.thread()``)."""
    gpu = SimulatedGPU()

    class Event:
        def __init__(self, **_: Any) -> None: ...
        def record(self, stream: Any = None) -> None: ...

        def synchronize(self) -> None:
            gpu.wait("event.synchronize")

        def elapsed_time(self, later: Any) -> float:
            if gpu._busy:
                raise RuntimeError("Both events must be completed before calculating elapsed time.")
            return 1.0

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.clone()
        copy.simulated_pinned = True  # type: ignore[attr-defined]
        return copy

    def on_device(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        # torch.tensor(..., device="cuda") would initialise the driver.
        def replacement(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
            if isinstance(data, SimulatedTensor):
                return data.to(**kwargs) if kwargs else data
            tensor = make(data, *args, **kwargs)
            return tensor if device is None else tensor.to(device)

        return replacement

    to_list = torch.Tensor.tolist
    torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack:

        def put(owner: Any, **new: Any) -> None:
            for name, value in new.items():
                stack.enter_context(mock.patch.object(owner, name, value, create=True))

        put(
            torch.cuda,
            Event=Event,
            _lazy_init=lambda: None,
            init=lambda: None,
            current_stream=lambda *_: _Stream(gpu),
            device_count=lambda: 1,
            get_arch_list=lambda: [f"sm_{capability[0]}{capability[1]}"],
            get_device_capability=lambda *_: capability,
            get_device_name=lambda *_: "simulated",
            is_available=lambda: True,
            is_bf16_supported=lambda *_, **__: capability >= (8, 0),
            memory_reserved=lambda *_: 0,
            set_device=lambda *_: None,
            synchronize=lambda *_: gpu.wait("synchronize"),
        )
        put(torch.Tensor, pin_memory=pin, tolist=lambda tensor: to_list(tensor.cpu()))
        put(torch, tensor=on_device(torch.tensor), as_tensor=on_device(torch.as_tensor))
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        stack.enter_context(torch.no_grad())
        stack.enter_context(gpu.thread())
        yield gpu
