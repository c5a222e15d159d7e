"""A library that torch's ahead-of-time compiler made, called without holding Python's lock.

torch's own loader holds the lock from the call to the answer: while the network ran, no other thread of the service
could accept, decode or answer anything. The library's C interface (torch/csrc/inductor/aoti_runtime/interface.h)
through ctypes does not, and needs no import of the compiler.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

_python = ctypes.pythonapi
_python.PyCapsule_GetPointer.restype = ctypes.c_void_p
_python.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_python.PyCapsule_New.restype = ctypes.py_object
_python.PyCapsule_New.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


class LibraryError(RuntimeError):
    """The library could not be loaded, or could not run."""


class Library:
    """One compiled function of tensors. Loading it runs its code: only load what this user wrote.

    Shapes, types and strides of what is given are not checked; they must be those it was compiled for.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        """Raises ``LibraryError`` where the file is no such library."""
        self._handle = ctypes.c_void_p()
        self.device = device
        try:
            self._library = ctypes.CDLL(str(path))
            create = self._library.AOTInductorModelContainerCreateWithDevice
            self._run = self._library.AOTInductorModelContainerRun
        except (OSError, AttributeError) as error:
            raise LibraryError(f"{path.name} cannot be loaded ({error}).") from None
        name = str(device).encode()
        self._check(create(ctypes.byref(self._handle), ctypes.c_size_t(1), name, None), "created")
        count = ctypes.c_size_t()
        get_count = self._library.AOTInductorModelContainerGetNumOutputs
        self._check(get_count(self._handle, ctypes.byref(count)), "asked")
        self._outputs = count.value

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """The function's outputs. Raises ``LibraryError`` where it fails."""
        # Each handle is given away: the library frees those of the inputs, and torch adopts those of the outputs.
        capsules = torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(list(inputs))
        given = (ctypes.c_void_p * len(inputs))(*(_python.PyCapsule_GetPointer(one, None) for one in capsules))
        made = (ctypes.c_void_p * self._outputs)()
        stream = None
        if self.device.type == "cuda":
            stream = ctypes.c_void_p(torch.cuda.current_stream(self.device).cuda_stream)
        sizes = ctypes.c_size_t(len(inputs)), ctypes.c_size_t(self._outputs)
        self._check(self._run(self._handle, given, sizes[0], made, sizes[1], stream, None), "run")
        pointers = [_python.PyCapsule_New(one, None, None) for one in made]
        outputs: list[Tensor] = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(pointers)
        return outputs

    def __del__(self) -> None:
        if self._handle.value:
            self._library.AOTInductorModelContainerDelete(self._handle)

    def _check(self, code: int, what: str) -> None:
        if code:
            last = self._library.AOTInductorGetLastError
            last.restype = ctypes.c_char_p
            reason = (last() or b"").decode(errors="replace").strip()
            raise LibraryError(f"The compiled code could not be {what}: {reason or f'code {code}'}.")
