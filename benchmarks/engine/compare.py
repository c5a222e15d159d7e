"""Compare the detector alone with what else runs the same weights: torchvision, ONNX Runtime, OpenVINO.

    python -m benchmarks.engine.compare --presets RESNET50_FPN LITE --batches 1 2 4 8 --rounds 5

All get the same weights and the same images, uint8 [480, 640, 3] in memory, and return boxes, scores and labels. They
take turns, forwards and backwards, so that a slow minute of the machine hits all of them. Beside the seconds: which
share of the boxes of torchvision in float32 each one finds too, and the arithmetic that torch counts for the network
over the seconds, as a share of what a large matrix product reached between the turns. A point is a preset and a batch
size; a run replaces the points that it measures and leaves the others.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks.engine.contenders import Unavailable, builders, waiter
from benchmarks.lib import machine, models, results, timing
from benchmarks.lib.contenders import BASE, Contender, share_found
from benchmarks.lib.images import photographs
from model.detector import Detector
from model.presets import PRESETS
from model.runtime.malloc import configure_malloc
from model.runtime.precision import multiplies_bf16
from model.structures import TIMED_STAGES, ImageArray
from model.transform import exact_canvas

PRODUCT = 2048  # rows of the matrix product that stands for the machine's peak


# ------------------------------------------------------------------------------------------------------- measurement
def _conv_flops(maps: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Count oneDNN's own convolution, which torch's counter does not know; all arguments are shapes."""
    return conv_flop_count(maps, weight, out_shape)


def count_flops(preset: str, images: Sequence[ImageArray]) -> int:
    """Return what torch counts for the network on these images, a multiplication and an addition as two."""
    detector = Detector.from_checkpoint(models.checkpoint(preset), device="cpu", precision="fp32", canvas="exact")
    custom = {torch.ops.mkldnn._convolution_pointwise: _conv_flops}
    with FlopCounterMode(display=False, custom_mapping=custom) as counter:
        detector.detect(images)
    return counter.get_total_flops()


def matrices(device: str) -> dict[str, torch.Tensor]:
    """Return a square matrix for each precision whose peak is measured, by precision."""
    side = PRODUCT if device == "cpu" else 8 * PRODUCT
    types = {"fp32": torch.float32}
    if multiplies_bf16(torch.device(device)):  # without such instructions one product takes a minute
        types["bf16"] = torch.bfloat16
    return {name: torch.rand(side, side, dtype=dtype, device=device) for name, dtype in types.items()}


def measure(
    contenders: list[Contender], images: Sequence[ImageArray], rounds: int, turn: float, device: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the table's rows, and the peaks by precision. turn: see ``timing.interleave``."""
    rows: list[dict[str, Any]] = []
    stages: dict[str, dict[str, list[float]]] = {}
    shares: dict[str, float] = {}
    calls: dict[str, Any] = {}
    expected = None

    def detect(contender: Contender) -> None:
        contender.detect(images)
        for stage, seconds in contender.stages().items():
            stages[contender.name][stage].append(seconds)

    for contender in contenders:
        try:
            answers = contender.detect(images)
            contender.detect(images)
        except Exception as error:
            rows.append({"name": contender.name, "failed": reason(error)})
            continue
        expected = answers if expected is None else expected
        shares[contender.name] = share_found(answers, expected)
        stages[contender.name] = defaultdict(list)
        calls[contender.name] = partial(detect, contender)
    products = {f"product {name}": matrix for name, matrix in matrices(device).items()}
    calls |= {name: partial(torch.matmul, matrix, matrix) for name, matrix in products.items()}
    for name in products:
        calls[name]()
    seconds, errors = timing.interleave(calls, rounds, turn=turn, wait=waiter(device))
    rows += [{"name": name, "failed": reason(error)} for name, error in errors.items()]
    rows += [
        {
            "name": name,
            "seconds": results.spread(seconds[name]),
            "stages": {
                stage: results.spread(stages[name][stage])["median"] for stage in TIMED_STAGES if stage in stages[name]
            },
            "agrees": round(shares[name], 4),
        }
        for name in shares
        if name not in errors
    ]
    peaks = {}
    for name, matrix in products.items():
        spread = results.spread(seconds[name])
        peaks[name.removeprefix("product ")] = {
            "operations_per_s": 2 * len(matrix) ** 3 / spread["median"],
            "seconds": spread,
        }
    return rows, peaks


def reason(error: Exception) -> str:
    """Return why a contender did not run, in one line."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, Unavailable) else f"{type(error).__name__}: {text}"


def measure_point(preset: str, batch: int, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure one preset at one batch size."""
    device = arguments.device
    about = machine.describe(device, "onnx", "onnxruntime", "openvino")
    images = photographs(batch)
    contenders, failed = [], []
    for name, build in builders(preset, batch, device, torch.get_num_threads(), folder).items():
        if name != BASE and not any(pattern in name for pattern in arguments.contenders):
            continue
        print(f"{preset}, batch {batch}: {name}", flush=True)
        try:
            contenders.append(build())
        except Exception as error:
            failed.append({"name": name, "failed": reason(error)})
    rows, peaks = measure(contenders, images, arguments.rounds, arguments.turn, device)
    config = next(config for config in PRESETS if config.name == preset)
    return {
        "machine": about,
        "command": "python -m benchmarks.engine.compare",
        "rounds": arguments.rounds,
        "preset": preset,
        "batch": batch,
        "canvas": exact_canvas(config.transform, 480, 640),
        "flops": count_flops(preset, images),
        "peaks": peaks,
        "rows": rows + failed,
    }


# ------------------------------------------------------------------------------------------------------------ tables
def tables(result: dict[str, Any]) -> list[results.Table]:
    """Return a table for each point, and one of the stages."""
    points = sorted(
        result["points"].values(),
        key=lambda p: (p["preset"] != "RESNET50_FPN", machine.widest_vectors(p["machine"]), p["batch"]),
    )
    stages = [
        (
            point["preset"],
            machine.widest_vectors(point["machine"]),
            row["name"],
            *(f"{row['stages'][s] * 1000:.1f}" if s in row["stages"] else "" for s in TIMED_STAGES),
        )
        for point in points
        if point["batch"] == 1
        for row in point["rows"]
        if row.get("stages") and row["name"].startswith(("ours", BASE))
    ]
    return [
        *(_speeds(point) for point in points),
        results.Table(
            "Milliseconds by stage, batch 1. torchvision's RoI head includes softmax, decoding and NMS; "
            "ours counts these as postprocess, and the RPN's convolutions as backbone.",
            ("preset", "vectors", "detector", *TIMED_STAGES),
            stages,
        ),
    ]


def _speeds(point: dict[str, Any]) -> results.Table:
    """Return the table of one point."""
    medians = {row["name"]: row["seconds"]["median"] for row in point["rows"] if "seconds" in row}
    rows = []
    for row in point["rows"]:
        if "failed" in row:
            rows.append((row["name"], row["failed"], *[""] * 5))
            continue
        median = row["seconds"]["median"]
        per_image = {key: value / point["batch"] for key, value in row["seconds"].items() if key != "runs"}
        speed = point["flops"] / median
        precision = next(kind for kind in ("int8", "bf16", "fp32") if kind in row["name"])
        peak = point["peaks"].get(precision)  # int8 has none
        rows.append(
            (
                row["name"],
                results.format_milliseconds(per_image),
                str(row["seconds"]["runs"]),
                f"{medians[BASE] / median:.2f}x" if BASE in medians else "",
                f"{speed / 1e9:,.0f}",
                f"{speed / peak['operations_per_s']:.0%}" if peak else "",
                f"{row['agrees']:.0%}",
            )
        )
    peaks = ", ".join(f"{name} {peak['operations_per_s'] / 1e9:,.0f}" for name, peak in point["peaks"].items())
    height, width = point["canvas"]
    return results.Table(
        f"{point['preset']}, 480 x 640 -> {height} x {width}, batch {point['batch']}: "
        f"{point['flops'] / point['batch'] / 1e9:.1f} GFLOP an image; a large product's peak in GFLOP/s: {peaks}. "
        f"{machine.sentence(point['machine'])}; {point['rounds']} rounds.",
        ("detector", "ms per image", "calls", f"speed over {BASE}", "GFLOP/s", "of the peak", "same boxes"),
        rows,
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(models.PRESETS), choices=models.PRESETS)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turn", type=float, default=0.3, help="seconds that each repeats itself for in a round")
    parser.add_argument(
        "--contenders", nargs="+", default=[""], help=f"parts of names; {BASE} always runs, being the measure"
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
                point = measure_point(preset, batch, arguments, Path(folder))
                result = results.load("engine")
                key = f"{preset}/{batch}/{machine.widest_vectors(point['machine'])}"
                result.setdefault("points", {})[key] = point
                results.save("engine", result)
                torch.compiler.reset()
    for table in tables(results.load("engine")):
        table.print()


if __name__ == "__main__":
    main()
