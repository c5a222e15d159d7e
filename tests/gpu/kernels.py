"""Read from the names in the installed libraries which types a CUDA kernel exists for.

A kernel is a template function, and the name of each of its instances carries the type (the mangling of the Itanium C++
ABI). An operator called with another type raises at run time, on a GPU alone.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

_TYPES = {
    b"f": torch.float32,
    b"d": torch.float64,
    b"N3c104HalfE": torch.float16,
    b"N3c108BFloat16E": torch.bfloat16,
    b"h": torch.uint8,
    b"a": torch.int8,
    b"s": torch.int16,
    b"i": torch.int32,
    b"l": torch.int64,
}
_FIRST_TYPE = re.compile(b"I(N3c10[0-9]+[A-Za-z0-9]+?E|[a-z])")


def torch_cuda() -> Path | None:
    """Find torch's library of CUDA kernels; None in a build for CPUs."""
    return _library("torch", "lib/libtorch_cuda.so")


def torchvision_ops() -> Path | None:
    """Find torchvision's library of operators, which holds its CUDA kernels too, where it has any."""
    return _library("torchvision", "_C_stable.so") or _library("torchvision", "_C.so")


def _library(package: str, name: str) -> Path | None:
    spec = find_spec(package)
    folders = spec.submodule_search_locations or [] if spec is not None else []
    return next((path for folder in folders if (path := Path(folder) / name).exists()), None)


@cache
def kernel_types(library: Path, kernel: str, having: str = "") -> frozenset[torch.dtype]:
    """Read the first template argument of each instance of ``kernel`` whose name also holds ``having``.

    kernel: the function's name. An empty set: there is no such kernel, or it is called otherwise in this version.
    """
    return frozenset(
        _TYPES[match.group(1)]
        for name, rest in _names(library, kernel)
        if having.encode() in name and (match := _FIRST_TYPE.match(rest)) and match.group(1) in _TYPES
    )


def _names(library: Path, kernel: str) -> Iterator[tuple[bytes, bytes]]:
    """Yield each name in the file that contains ``kernel`` after its length, and what follows it there."""
    mangled = f"{len(kernel)}{kernel}".encode()
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        at = memory.find(mangled)
        while at != -1:
            begin, end = memory.rfind(b"\0", 0, at) + 1, memory.find(b"\0", at)
            yield memory[begin:end], memory[at + len(mangled) : end]
            at = memory.find(mangled, end)
