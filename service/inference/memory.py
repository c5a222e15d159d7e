"""Recognise a device that runs out of memory, and say what to do about it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from service.errors import StartError

_PHRASES = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    # cuBLAS and cuDNN
    "status_alloc_failed",
    "allocation_failed",
)
_OTHERS = "stop another process that uses the GPU (nvidia-smi shows which)"
_SMALLER = "choose weights of a smaller preset (`frcnn weights list` names them)"
_LESS = f"set FRCNN_PRECISION to bf16 or fp16, or {_SMALLER}"


class OutOfMemoryAtStart(StartError):
    """The detector did not fit into the device's memory when the service started; the text says what to do."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` is of a device, or a host, without enough memory.

    On a GPU torch raises a class of its own; on a CPU only the message says so.
    """
    message = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(phrase in message for phrase in _PHRASES)
    )


def advise(error: BaseException, when: str) -> str:
    """Return a sentence for an operator: ``error``, by ``is_out_of_memory``, came ``when`` ("while it warmed up")."""
    if _on_gpu(error):
        return f"The GPU ran out of memory {when}: {_OTHERS}, {_LESS}."
    return f"This machine ran out of memory {when}: give the process more, or {_SMALLER}."


def advise_for_image(error: BaseException) -> str:
    """Return a sentence for the log: one image failed alone for lack of memory, while the service was running."""
    if _on_gpu(error):
        return (
            f"The GPU has too little memory for this image alone: {_OTHERS}, {_LESS}. Images that fit are answered; "
            "where batches fail too, lower FRCNN_MAX_BATCH_PIXELS or FRCNN_MAX_BATCH."
        )
    return f"This machine has too little memory for this image alone: give the process more, or {_SMALLER}."


def advise_training(error: BaseException) -> str:
    """Return a sentence for the user of ``frcnn train`` or ``frcnn evaluate``."""
    if _on_gpu(error):
        return f"The GPU ran out of memory: {_OTHERS}, or give a smaller --batch-size."
    return "This machine ran out of memory: give the process more, or give a smaller --batch-size."


@contextlib.contextmanager
def memory_at_start(when: str) -> Iterator[None]:
    """Raise ``OutOfMemoryAtStart`` where the block runs out of memory."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryAtStart(advise(error, when)) from error


def _on_gpu(error: BaseException) -> bool:
    message = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or any(name in message for name in ("cuda", "cudnn", "cublas"))
