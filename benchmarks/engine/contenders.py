"""Who is compared on a CPU: our detector, torchvision's, and exports of that in ONNX Runtime and OpenVINO."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.lib import models
from benchmarks.lib.contenders import BASE, Contender, DetectedBoxes, detect_with_torchvision, detector_contender
from benchmarks.lib.images import photographs
from benchmarks.lib.timing import ModuleTimer, Wait, nothing
from model.checkpoint import quantization_ranges_path, resolve
from model.detector import Detector
from model.presets import LITE
from model.runtime.buckets import CanvasMode
from model.structures import ImageArray
from model.training.quantization_ranges import write_quantization_ranges
from model.transform import resized_size

AUTOCAST = "torchvision bf16 autocast, channels_last"
COMPILED = "torchvision fp32, backbone compiled"
WINOGRAD = "ours fp32, Winograd"


class Unavailable(Exception):
    """Raised with the reason, in a sentence, where a contender does not run here."""


def builders(preset: str, batch: int, device: str, threads: int, folder: Path) -> dict[str, Callable[[], Contender]]:
    """Return a function for each contender that builds it, by its name. folder: for exports."""
    model = models.torchvision_detector(preset)

    def export() -> Export:
        return Export(preset, model, batch, folder)

    every: dict[str, Callable[[], Contender]] = {
        name: lambda name=name: torchvision(model, device, name)  # type: ignore[misc]
        for name in (BASE, AUTOCAST, COMPILED)
    }
    if device == "cpu":
        every |= {
            "ONNX Runtime fp32": lambda: onnx_runtime(export(), threads),
            "OpenVINO fp32": lambda: open_vino(export(), threads, "f32"),
            "OpenVINO bf16": lambda: open_vino(export(), threads, "bf16"),
        }
    for precision in ("fp32", "bf16", "int8") if device == "cpu" else ("fp32", "bf16"):
        name = f"ours {precision}"
        every[name] = lambda p=precision, n=name: ours(preset, p, device, n, "exact")  # type: ignore[misc]
    if device == "cpu" and preset != "LITE":  # whose layers are too narrow
        every[WINOGRAD] = lambda: ours(preset, "fp32", device, WINOGRAD, "buckets")
    return every


def waiter(device: str) -> Wait:
    """Return the function that waits until the device is idle."""
    return torch.cuda.synchronize if device.startswith("cuda") else nothing


def ours(preset: str, precision: str, device: str, name: str, canvas: CanvasMode) -> Contender:
    """Build our detector. canvas: ``exact`` as torchvision pads; for 480 x 640 the service's own are the same."""
    if precision == "int8":
        _measure_ranges(preset)
    detector = Detector.from_checkpoint(models.checkpoint(preset), device=device, precision=precision, canvas=canvas)
    if name == WINOGRAD and "Winograd" not in " ".join(detector.info.optimizations):
        raise Unavailable("No convolution is quicker so on this processor.")
    return detector_contender(detector, name)


def _measure_ranges(preset: str) -> None:
    """Write quantization ranges for weights that come without, from the images that they are timed on."""
    if not quantization_ranges_path(resolve(models.checkpoint(preset))).is_file():
        detector = Detector.from_checkpoint(models.checkpoint(preset), device="cpu", precision="fp32")
        write_quantization_ranges(detector, photographs(8))


def torchvision(model: nn.Module, device: str, name: str) -> Contender:
    """Build torchvision's detector as it is, in bf16 where autocast allows it, or with its backbone compiled."""
    model = copy.deepcopy(model).to(device)
    if name == AUTOCAST:
        model = model.to(memory_format=torch.channels_last)
    seconds: dict[str, float] = {}
    if name == COMPILED:  # dynamo cannot trace a clock
        model.backbone.compile()
    else:
        parts = {
            "transform": model.transform,
            "backbone": model.backbone,
            "rpn": model.rpn,
            "roi_head": model.roi_heads,
        }
        seconds = ModuleTimer(parts, waiter(device)).seconds

    def detect(images: Sequence[ImageArray]) -> list[DetectedBoxes]:
        bf16 = torch.autocast(device.split(":")[0], torch.bfloat16, enabled=name == AUTOCAST)
        with torch.inference_mode(), bf16:
            return detect_with_torchvision(model, images, device)

    return Contender(name, detect, lambda: dict(seconds))


class Export:
    """torchvision's detector for ``count`` images as ONNX, by the exporter that torchvision supports.

    ONNX has no resize with a low-pass filter that the exporter knows: LITE's images are resized before it, in torch.
    """

    def __init__(self, preset: str, model: nn.Module, count: int, folder: Path) -> None:
        self.path = folder / f"{preset}-{count}.onnx"
        self.size = resized_size(LITE.transform, 480, 640) if preset == "LITE" else (480, 640)
        if not self.path.exists():
            example = [torch.rand(3, *self.size) for _ in range(count)]
            # It warns of every constant that it makes, and on failure prints the whole graph.
            with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(model, (example,), str(self.path), opset_version=18, dynamo=False)

    def inputs(self, images: Sequence[ImageArray]) -> list[np.ndarray]:
        """Convert images to float32 [3, h, w]."""
        planes = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in images]
        if self.size != (480, 640):
            planes = [F.interpolate(plane, size=self.size, mode="bilinear", antialias=True) for plane in planes]
        return [plane[0].contiguous().numpy() for plane in planes]

    def answers(self, outputs: Sequence[Any]) -> list[DetectedBoxes]:
        """Convert what comes out: the list of dicts is flattened, to boxes, labels and scores of each image."""
        tensors = [torch.from_numpy(np.array(output)) for output in outputs]
        scale = 480 / self.size[0]
        return [DetectedBoxes(tensors[i] * scale, tensors[i + 2], tensors[i + 1]) for i in range(0, len(tensors), 3)]


def onnx_runtime(export: Export, threads: int) -> Contender:
    """Build ONNX Runtime on the export."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(export.path), options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]

    def detect(images: Sequence[ImageArray]) -> list[DetectedBoxes]:
        return export.answers(session.run(None, dict(zip(names, export.inputs(images), strict=True))))

    return Contender("ONNX Runtime fp32", detect)


def open_vino(export: Export, threads: int, precision: str) -> Contender:
    """Build OpenVINO on the export. precision: ``f32`` or its own ``bf16``."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(str(export.path)), "CPU", settings)
    request = compiled.create_infer_request()

    def detect(images: Sequence[ImageArray]) -> list[DetectedBoxes]:
        request.infer(dict(enumerate(export.inputs(images))))
        return export.answers([request.get_output_tensor(i).data for i in range(3 * len(images))])

    return Contender(f"OpenVINO {'fp32' if precision == 'f32' else 'bf16'}", detect)
