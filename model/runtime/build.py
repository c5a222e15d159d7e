"""``python -m model.runtime.build``: the child process that compiles, so that the one that serves is not held up.

It reads a ``Job`` from its standard input, writes a library for ``model.runtime.library`` into the job's folder, and
ends. The input stays open after the job: when it closes, the parent is gone, and the child goes too.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import struct
import sys
import threading
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import torch

from model.config import DetectorConfig
from model.faster_rcnn import FasterRCNN
from model.runtime.fold import fold_norms
from model.runtime.parts import DensePart

LIBRARY = "dense.so"
_LENGTH = struct.Struct("<Q")
# Weights become constants in oneDNN's own layout; the number of threads is read when the code runs.
_SETTINGS = {"freezing": True, "cpp.dynamic_threads": True}
_CUDA_SETTINGS = {"max_autotune": True, "aot_inductor.embed_kernel_binary": True}


@dataclass(frozen=True)
class Job:
    """What to compile.

    state: the folded weights by name, as bytes in the model's type (numpy has no bfloat16). dtype: its name in torch.
    device: cpu or cuda:N. canvas: (height, width) to try shapes with. threads: of torch, when the code runs. folder:
    where the library goes.
    """

    config: DetectorConfig
    state: dict[str, npt.NDArray[np.uint8]]
    dtype: str
    device: str
    canvas: tuple[int, int]
    threads: int
    folder: Path


def send(job: Job, pipe: IO[bytes]) -> None:
    """Write a job; the pipe stays open."""
    data = pickle.dumps(job, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Job:
    """Read a job, which this process's own parent wrote."""
    (length,) = _LENGTH.unpack(pipe.read(_LENGTH.size))
    job = pickle.loads(pipe.read(length))
    assert isinstance(job, Job)
    return job


def build(job: Job) -> None:
    """Compile the dense part of the job's detector: one code for every canvas and batch."""
    import torch._inductor.config as options  # seconds, which the process that serves need not spend

    device, dtype = torch.device(job.device), getattr(torch, job.dtype)
    torch.set_num_threads(job.threads)
    part = DensePart(_model(job, dtype).to(device), dtype)
    stride = job.config.transform.stride
    most = max(3, -(-job.config.transform.max_size // stride))
    batch = torch.export.Dim("batch", min=1, max=1024)
    rows, columns = (stride * torch.export.Dim(name, min=2, max=most) for name in ("rows", "columns"))
    # Two pictures: a size of one would be taken for a constant.
    pixels = torch.randn(2, 3, *job.canvas, device=device).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        program = torch.export.export(part, (pixels,), dynamic_shapes=({0: batch, 2: rows, 3: columns},))
        package = job.folder / "dense.pt2"
        with options.patch(_SETTINGS | (_CUDA_SETTINGS if pixels.is_cuda else {})):
            torch._inductor.aoti_compile_and_package(program, package_path=str(package))
    _unpack(package, job.folder / LIBRARY)
    package.unlink()


def _model(job: Job, dtype: torch.dtype) -> FasterRCNN:
    with torch.device("meta"):
        model = FasterRCNN(job.config)
    model = model.to_empty(device="cpu").eval().requires_grad_(False)
    for parameter in [*model.parameters(), *model.buffers()]:
        parameter.fill_(1)  # norms that can be folded: what matters is that they go
    fold_norms(model)
    model = model.to(dtype)
    shapes = model.state_dict()
    state = {}
    for name, raw in job.state.items():
        state[name] = torch.from_numpy(raw).view(shapes[name].dtype).reshape(shapes[name].shape)
    model.load_state_dict(state)
    return model.to(memory_format=torch.channels_last)


def _unpack(package: Path, target: Path) -> None:
    """The library out of torch's archive. Raises ``RuntimeError`` where it would not do alone."""
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        (library,) = (name for name in names if name.endswith(".so"))
        if strangers := [name for name in names if name.endswith(".json") and not name.endswith("_metadata.json")]:
            raise RuntimeError(f"The network needs operators without a C interface: {strangers}.")
        with archive.open(library) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file)


def _end_with_the_parent(pipe: IO[bytes]) -> None:
    pipe.read()
    os.killpg(0, signal.SIGKILL)  # with the C++ compiler: the session is this process's own


def main() -> None:
    """Do the job that comes in."""
    os.nice(19)
    warnings.simplefilter("ignore")
    job = receive(sys.stdin.buffer)
    threading.Thread(target=_end_with_the_parent, args=(sys.stdin.buffer,), daemon=True).start()
    build(job)
    sys.stdout.flush()
    os._exit(0)  # the thread above still waits for its pipe, which an ordinary end would wait for


if __name__ == "__main__":
    # Pickled as this module's, whose name is another while it is run.
    from model.runtime import build as named

    named.main()
