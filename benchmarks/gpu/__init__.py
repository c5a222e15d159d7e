"""Test and measure one GPU in some minutes, with one command.

    python -m benchmarks.gpu --limit 480

needs torch, torchvision, numpy, Pillow, safetensors and pytest. Sections, the most important first: a
description of the machine, the tests marked gpu, agreement with the CPU and with torchvision, speed beside torchvision,
a profile, and memory. Each has a share of the time that is left, and runs in a process of its own, so that one that
fails, hangs or loses the GPU does not stop the others. The JSON file is written after every point. Options, outside the
limit: --train and --http. ``--device cpu --tiny`` runs the same code on a CPU in some seconds.
"""

from benchmarks.gpu.table import tables

__all__ = ["tables"]
