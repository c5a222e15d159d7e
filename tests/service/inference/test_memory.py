"""Recognising errors that mean that memory ran out."""

import pytest

from service.inference.memory import is_out_of_memory
from tests.service.memory_errors import CPU_OUT_OF_MEMORY, OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OUT_OF_MEMORY, True),
        (CPU_OUT_OF_MEMORY, True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("device-side assert triggered"), False),
    ],
)
def test_errors_of_every_backend_are_recognised(error, expected):
    assert is_out_of_memory(error) is expected
