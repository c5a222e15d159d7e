"""The detector alone, against what else runs the same weights: torchvision, ONNX Runtime, OpenVINO.

    python -m benchmarks.engine --presets RESNET50_FPN LITE --batches 1 2 4 8 --rounds 5

Everybody gets the same weights (``pairs``) and the same pictures, uint8 [480, 640, 3] in memory, and gives boxes,
scores and labels. All take turns, forwards and backwards, so that a slow minute of the machine hits everyone; one first
turn is for warming up. Beside the seconds: how much of what torchvision finds in float32 each one finds too, and the
arithmetic that torch counts for the network over the seconds, as a share of what a large matrix product reached between
the turns. A point is a preset and a batch size; a run replaces the points that it measures and leaves the others.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks import pairs, report
from model.boxes import iou
from model.checkpoint import ranges_file, resolve
from model.config import LITE, PRESETS
from model.detector import Detector
from model.runtime.buckets import CanvasMode
from model.runtime.malloc import configure_malloc
from model.runtime.precision import multiplies_bf16
from model.training.quantization_ranges import write_quantization_ranges
from model.transform import exact_canvas, resized_size

Picture = np.ndarray[Any, np.dtype[np.uint8]]
STAGES = ("transform", "backbone", "rpn", "roi_head", "postprocess")
PRODUCT = 2048  # rows of the matrix product that stands for the machine's peak
BASE = "torchvision fp32"
WINOGRAD = "ours fp32 eager, Winograd"


@dataclass
class Found:
    """One picture's answer, float32 [D, 4], [D] and int64 [D], on the CPU."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


@dataclass
class Contender:
    """``run`` takes the pictures and gives an answer each, and the seconds of its stages where it knows them."""

    name: str
    run: Callable[[Sequence[Picture]], tuple[list[Found], dict[str, float]]]
    seconds: list[float] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    agrees: float = 0.0


class Withdrawn(Exception):
    """Why a contender does not run here, in a sentence."""


# ------------------------------------------------------------------------------------------------------ who competes
def ours(preset: str, precision: str, device: str, name: str, canvas: CanvasMode) -> Contender:
    """Our detector. canvas: ``exact`` for torchvision's; of 480 x 640 the service's own are the same."""
    if precision == "int8":
        _calibrate(preset)
    detector = Detector.from_checkpoint(pairs.checkpoint(preset), device=device, precision=precision, canvas=canvas)
    if name == WINOGRAD and "Winograd" not in " ".join(detector.info.optimizations):
        raise Withdrawn("No convolution is quicker so on this processor.")

    def run(pictures: Sequence[Picture]) -> tuple[list[Found], dict[str, float]]:
        answers = detector.detect(pictures)
        return [Found(a.boxes, a.scores, a.class_ids) for a in answers], dict(answers[0].timings)

    return Contender(name, run)


def _calibrate(preset: str) -> None:
    """Ranges for weights that come without: of the pictures that they are timed on."""
    if not ranges_file(resolve(pairs.checkpoint(preset))).is_file():
        detector = Detector.from_checkpoint(pairs.checkpoint(preset), device="cpu", precision="fp32")
        write_quantization_ranges(detector, pictures(8))


class _Stages:
    """Times torchvision's parts from outside; on a GPU each ends when the device has done it."""

    def __init__(self, model: nn.Module, device: str) -> None:
        self.seconds: dict[str, float] = {}
        self.wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
        for stage, name in (("transform", "transform"), ("backbone", "backbone"), ("rpn", "rpn")):
            self._watch(stage, getattr(model, name))
        self._watch("roi_head", model.roi_heads)  # with softmax, decoding and NMS, which ours counts as postprocess

    def _watch(self, stage: str, module: nn.Module) -> None:
        begun = 0.0

        def before(*_: Any) -> None:
            nonlocal begun
            self.wait()
            begun = time.perf_counter()

        def after(*_: Any) -> None:
            self.wait()
            self.seconds[stage] = time.perf_counter() - begun

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)


def torchvision(model: nn.Module, device: str, kind: str) -> Contender:
    """torchvision's detector as it is, in bf16 where autocast allows it, or with its backbone compiled."""
    model = copy.deepcopy(model).to(device)
    if kind == "bf16 autocast, channels_last":
        model = model.to(memory_format=torch.channels_last)
    compiled = kind == "fp32, backbone compiled"
    seconds = {} if compiled else _Stages(model, device).seconds  # dynamo cannot trace a clock
    if compiled:
        model.backbone.compile()
    bf16 = torch.autocast(device.split(":")[0], torch.bfloat16, enabled=kind.startswith("bf16"))

    def run(pictures: Sequence[Picture]) -> tuple[list[Found], dict[str, float]]:
        with torch.inference_mode(), bf16:
            tensors = [torch.from_numpy(p).to(device).permute(2, 0, 1).float() / 255 for p in pictures]
            answers = [
                Found(a["boxes"].float().cpu(), a["scores"].float().cpu(), a["labels"].cpu()) for a in model(tensors)
            ]
        return answers, seconds

    return Contender(f"torchvision {kind}", run)


class Export:
    """torchvision's detector for ``count`` pictures as ONNX, by the exporter that torchvision supports.

    ONNX has no resize with a low-pass that the exporter knows: LITE's pictures are resized before it, in torch.
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

    def tensors(self, pictures: Sequence[Picture]) -> list[Picture]:
        """What goes in, float32 [3, h, w]."""
        planes = [torch.from_numpy(p).permute(2, 0, 1)[None].float() / 255 for p in pictures]
        if self.size != (480, 640):
            planes = [F.interpolate(p, size=self.size, mode="bilinear", antialias=True) for p in planes]
        return [p[0].contiguous().numpy() for p in planes]

    def found(self, outputs: Sequence[Any]) -> list[Found]:
        """What comes out: the list of dicts is flattened, to boxes, labels and scores of each picture."""
        tensors = [torch.from_numpy(np.array(output)) for output in outputs]
        scale = 480 / self.size[0]
        return [Found(tensors[i] * scale, tensors[i + 2], tensors[i + 1]) for i in range(0, len(tensors), 3)]


def onnx_runtime(exported: Export, threads: int) -> Contender:
    """ONNX Runtime on the export."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(exported.path), options, providers=["CPUExecutionProvider"])
    names = [tensor.name for tensor in session.get_inputs()]

    def run(pictures: Sequence[Picture]) -> tuple[list[Found], dict[str, float]]:
        return exported.found(session.run(None, dict(zip(names, exported.tensors(pictures), strict=True)))), {}

    return Contender("ONNX Runtime fp32", run)


def open_vino(exported: Export, threads: int, precision: str) -> Contender:
    """OpenVINO on the export; its own bf16 where asked."""
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(str(exported.path)), "CPU", settings)
    request = compiled.create_infer_request()

    def run(pictures: Sequence[Picture]) -> tuple[list[Found], dict[str, float]]:
        request.infer(dict(enumerate(exported.tensors(pictures))))
        return exported.found([request.get_output_tensor(i).data for i in range(3 * len(pictures))]), {}

    return Contender(f"OpenVINO {'fp32' if precision == 'f32' else 'bf16'}", run)


# ------------------------------------------------------------------------------------------------------- measurement
def pictures(count: int) -> list[Picture]:
    """``count`` crops of the page's two photographs, 480 x 640."""
    examples = report.ROOT / "service/web/examples"
    made = []
    for number in range(count):
        image = Image.open(examples / ("chelsea.jpg", "camera.jpg")[number % 2]).convert("RGB")
        cut = 4 * (number // 2)
        made.append(np.array(image.crop((cut, cut, image.width - cut, image.height - cut)).resize((640, 480))))
    return made


def agreement(found: Sequence[Found], right: Sequence[Found]) -> float:
    """The share of the right boxes that were found: same label, IoU of 0.9, score within 0.1."""
    hits = total = 0
    for mine, other in zip(found, right, strict=True):
        total += len(other.boxes)
        if len(mine.boxes) and len(other.boxes):
            near = iou(other.boxes, mine.boxes) >= 0.9
            near &= (other.scores[:, None] - mine.scores[None]).abs() <= 0.1
            near &= other.labels[:, None] == mine.labels[None]
            hits += int(near.any(dim=1).sum())
    return hits / total if total else 1.0


def _conv_flops(maps: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Of oneDNN's own convolution, which torch's counter does not know; all are given as shapes."""
    return conv_flop_count(maps, weight, out_shape)


def count_flops(preset: str, images: Sequence[Picture]) -> int:
    """What torch counts for the network on these pictures: multiplications and additions each one."""
    detector = Detector.from_checkpoint(pairs.checkpoint(preset), device="cpu", precision="fp32", canvas="exact")
    known = {torch.ops.mkldnn._convolution_pointwise: _conv_flops}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        detector.detect(images)
    return counter.get_total_flops()


class Peak:
    """Operations a second of a large product, in each precision."""

    def __init__(self, device: str) -> None:
        self.wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
        side = PRODUCT if device == "cpu" else 8 * PRODUCT
        self.operations = 2 * side**3
        self.factors = {
            name: torch.rand(side, side, dtype=dtype, device=device)
            for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
            # Where the processor has no such products, one of them takes a minute.
            if name == "fp32" or multiplies_bf16(torch.device(device))
        }
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def measure(self) -> None:
        """One more time each."""
        for name, factor in self.factors.items():
            self.wait()
            begun = time.perf_counter()
            factor @ factor
            self.wait()
            self.seconds[name].append(time.perf_counter() - begun)


def measure(
    contenders: list[Contender], images: Sequence[Picture], rounds: int, turn: float, device: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the table, and the peaks. turn: seconds that a contender repeats itself for, at least once."""
    rows: list[dict[str, Any]] = []
    standing, right, peak = [], None, Peak(device)
    peak.measure()
    peak.seconds.clear()
    for contender in contenders:
        try:
            found, _ = contender.run(images)
            contender.run(images)
        except Exception as error:
            rows.append({"name": contender.name, "failed": _why(error)})
            continue
        right = found if right is None else right
        contender.agrees = agreement(found, right)
        standing.append(contender)
    for number in range(rounds):
        peak.measure()
        for contender in standing if number % 2 == 0 else reversed(standing):
            until = time.perf_counter() + turn
            while True:
                begun = time.perf_counter()
                _, stages = contender.run(images)
                now = time.perf_counter()
                contender.seconds.append(now - begun)
                for stage in STAGES:
                    if stage in stages:
                        contender.stages[stage].append(stages[stage])
                if now >= until:
                    break
    rows += [
        {
            "name": c.name,
            "seconds": report.spread(c.seconds),
            "stages": {stage: report.spread(values)["median"] for stage, values in c.stages.items()},
            "agrees": round(c.agrees, 4),
        }
        for c in standing
    ]
    peaks = {
        name: {"operations_per_s": peak.operations / report.spread(values)["median"], "seconds": report.spread(values)}
        for name, values in peak.seconds.items()
    }
    return rows, peaks


def _why(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = " ".join(lines)[:300]
    return said if isinstance(error, Withdrawn) else f"{type(error).__name__}: {said}"


def point(preset: str, batch: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything about one preset at one batch size."""
    device, threads = arguments.device, torch.get_num_threads()
    machine = report.environment(device, "onnx", "onnxruntime", "openvino")
    images = pictures(batch)
    model = pairs.in_torchvision(preset)
    on_cpu = device == "cpu"
    wanted: dict[str, Callable[[], Contender]] = {
        BASE: lambda: torchvision(model, device, "fp32"),
        "torchvision bf16 autocast, channels_last": lambda: torchvision(model, device, "bf16 autocast, channels_last"),
        "torchvision fp32, backbone compiled": lambda: torchvision(model, device, "fp32, backbone compiled"),
    }
    if on_cpu:
        wanted |= {
            "ONNX Runtime fp32": lambda: onnx_runtime(Export(preset, model, batch, folder), threads),
            "OpenVINO fp32": lambda: open_vino(Export(preset, model, batch, folder), threads, "f32"),
            "OpenVINO bf16": lambda: open_vino(Export(preset, model, batch, folder), threads, "bf16"),
        }
    for precision in ("fp32", "bf16"):
        name = f"ours {precision} eager"
        wanted[name] = lambda p=precision, n=name: ours(preset, p, device, n, "exact")  # type: ignore[misc]
    if on_cpu:
        wanted["ours int8 eager"] = lambda: ours(preset, "int8", device, "ours int8 eager", "exact")
    if on_cpu and preset != "LITE":  # whose layers are too narrow
        wanted[WINOGRAD] = lambda: ours(preset, "fp32", device, WINOGRAD, "buckets")
    contenders, failed = [], []
    for name, make in wanted.items():
        if name != BASE and not any(pattern in name for pattern in arguments.peers):
            continue
        print(f"{preset}, {batch} at once: {name}", flush=True)
        try:
            contenders.append(make())
        except Exception as error:
            failed.append({"name": name, "failed": _why(error)})
    rows, peaks = measure(contenders, images, arguments.rounds, arguments.turn, device)
    config = next(config for config in PRESETS if config.name == preset)
    return {
        "machine": machine,
        "command": "python -m benchmarks.engine",
        "rounds": arguments.rounds,
        "preset": preset,
        "batch": batch,
        "canvas": exact_canvas(config.transform, 480, 640),
        "flops": count_flops(preset, images),
        "peaks": peaks,
        "rows": rows + failed,
    }


# ------------------------------------------------------------------------------------------------------------ tables
def tables(result: dict[str, Any]) -> list[report.Table]:
    """For the page and the terminal: a table a point, the stages, and what was to be reached."""
    points = sorted(
        result["points"].values(),
        key=lambda p: (p["preset"] != "RESNET50_FPN", report.vectors(p["machine"]), p["batch"]),
    )
    stages = [
        (p["preset"], report.vectors(p["machine"]), row)
        for p in points
        if p["batch"] == 1
        for row in p["rows"]
        if row.get("stages") and row["name"].startswith(("ours", BASE))
    ]
    return [
        *(_speeds(p) for p in points),
        report.Table(
            "Milliseconds by stage, one picture at once. torchvision's RoI head includes softmax, decoding and NMS; "
            "ours counts these as postprocess, and the RPN's convolutions as backbone.",
            ("preset", "vectors", "who", *STAGES),
            [
                (
                    preset,
                    vectors,
                    row["name"],
                    *(f"{row['stages'][s] * 1000:.1f}" if s in row["stages"] else "" for s in STAGES),
                )
                for preset, vectors, row in stages
            ],
        ),
        _reached(points),
    ]


def _speeds(found: dict[str, Any]) -> report.Table:
    """One point."""
    timed = {row["name"]: row["seconds"]["median"] for row in found["rows"] if "seconds" in row}
    rows = []
    for row in found["rows"]:
        if "failed" in row:
            rows.append((row["name"], row["failed"], *[""] * 5))
            continue
        each = {key: value / found["batch"] for key, value in row["seconds"].items() if key != "runs"}
        speed = found["flops"] / row["seconds"]["median"]
        precision = next(kind for kind in ("int8", "bf16", "fp32") if kind in row["name"])  # there is no peak of int8
        rows.append(
            (
                row["name"],
                report.milliseconds(each),
                str(row["seconds"]["runs"]),
                f"{timed[BASE] / row['seconds']['median']:.2f}x" if BASE in timed else "",
                f"{speed / 1e9:,.0f}",
                f"{speed / found['peaks'][precision]['operations_per_s']:.0%}" if precision in found["peaks"] else "",
                f"{row['agrees']:.0%}",
            )
        )
    peaks = ", ".join(f"{name} {peak['operations_per_s'] / 1e9:,.0f}" for name, peak in found["peaks"].items())
    height, width = found["canvas"]
    return report.Table(
        f"{found['preset']}, 480 x 640 -> {height} x {width}, {found['batch']} at once: "
        f"{found['flops'] / found['batch'] / 1e9:.1f} GFLOP a picture; product peak in GFLOP/s: {peaks}. "
        f"{report.where(found['machine'])}; {found['rounds']} rounds.",
        ("who", "ms a picture", "runs", f"to {BASE}", "GFLOP/s", "of the peak", "finds the same"),
        rows,
    )


def _reached(points: Sequence[dict[str, Any]]) -> report.Table:
    """The ratios that were set as goals, from the points of one picture at once."""
    rows = []
    for preset, precision, other, goal in (
        ("RESNET50_FPN", "bf16", BASE, 10.0),
        ("RESNET50_FPN", "bf16", "torchvision bf16 autocast, channels_last", 3.0),
        ("RESNET50_FPN", "fp32", BASE, 1.4),
        ("RESNET50_FPN", "int8", BASE, 10.0),
        ("LITE", "int8", BASE, 4.0),
        ("LITE", "bf16", BASE, 4.0),
        ("LITE", "fp32", BASE, 4.0),
    ):
        for found in points:
            timed = {row["name"]: row["seconds"]["median"] for row in found["rows"] if "seconds" in row}
            mine = _best(timed, precision)
            if (found["preset"], found["batch"]) == (preset, 1) and mine and other in timed:
                ratio = timed[other] / timed[mine]
                vectors = report.vectors(found["machine"])
                rows.append((f"{preset}: {mine} against {other}", vectors, f"{goal:g}x", f"{ratio:.2f}x"))
    for found in points:
        timed = {row["name"]: row["seconds"]["median"] for row in found["rows"] if "seconds" in row}
        mine = _best(timed, "bf16")
        if (found["preset"], found["batch"]) == ("RESNET50_FPN", 1) and mine:
            share = found["flops"] / timed[mine] / found["peaks"]["bf16"]["operations_per_s"]
            vectors = report.vectors(found["machine"])
            what = f"RESNET50_FPN: {mine}, share of the bf16 product's peak, whole detector"
            rows.append((what, vectors, "60%", f"{share:.0%}"))
    head = ("what", "vectors", "at least", "reached")
    return report.Table("What was to be reached, one picture at once, by the processor's vectors.", head, rows)


def _best(timed: dict[str, float], precision: str) -> str | None:
    """Our quickest form in that precision; None where none ran."""
    return min((name for name in timed if name.startswith(f"ours {precision}")), key=timed.__getitem__, default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(pairs.PRESETS), choices=pairs.PRESETS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=0.3, help="seconds that each repeats itself for in a round")
    parser.add_argument(
        "--peers", nargs="+", default=[""], help="parts of names; torchvision fp32 always runs, being the measure"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch, ONNX Runtime and OpenVINO; default: torch's own")
    arguments = parser.parse_args()
    configure_malloc()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        for preset in arguments.presets:
            for batch in arguments.batches:
                found = point(preset, batch, arguments, Path(folder))
                result = report.load("engine")
                result.setdefault("points", {})[f"{preset}/{batch}/{report.vectors(found['machine'])}"] = found
                report.save("engine", result)
                torch.compiler.reset()
    for table in tables(report.load("engine")):
        table.print()


if __name__ == "__main__":
    main()
