"""Write docs/performance.md from the JSON files in benchmarks/results/, or print the tables of one of them.

python -m benchmarks.report           # writes the page
python -m benchmarks.report engine    # prints the tables of results/engine.json
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.lib import markers, results
from benchmarks.lib.contenders import BASE
from benchmarks.lib.machine import widest_vectors
from benchmarks.serving.compare import best_peer, our_points

PAGE = results.ROOT / "docs/performance.md"
COLUMNS = ("measured", "this project", "torchvision", "best alternative", "machine, date", "command")
FILE_COLUMNS = ("file", "what", "latest date", "command", "shown by")
_AUTOCAST = "torchvision bf16 autocast, channels_last"
_CARD = "../weights/lite-voc20.md"


@dataclass(frozen=True)
class Result:
    """A JSON file. module: has ``tables`` for it, and is the command that wrote it where ``command`` is empty."""

    name: str
    what: str
    module: str = ""
    command: str = ""
    document: str = ""

    @property
    def shown_command(self) -> str:
        """The command that wrote the file."""
        return self.command or f"python -m benchmarks.{self.module}"


RESULTS = (
    Result("engine", "The network alone: milliseconds, share of the peak, stages; batches of 1 to 8", "engine.compare"),
    Result("profile", "The network alone: where the time of one image goes, by kind of operator", "engine.profile"),
    Result("primitive-cache", "oneDNN's cache of compiled primitives under mixed traffic", "engine.primitive_cache"),
    Result("nms-rounds", "Rounds of the GPU's NMS on photographs", "engine.nms_rounds", document="engine.md"),
    Result("invariance", "How far an answer depends on its batch", "engine.batch_invariance", document="overload.md"),
    Result("serve", "The service and four others through HTTP, 1 to 32 clients", "serving.compare"),
    Result("threads", "The service with other numbers of threads", "serving.threads"),
    Result("startup", "Seconds from the start of the process to the first answer", "serving.startup"),
    Result("memory", "Resident memory over thousands of mixed requests", "serving.memory"),
    Result("decode-process", "A JPEG decoded in a process of its own against a thread", "serving.decode_process"),
    Result("decode", "JPEG decoded at a reduced size: detections; memory over broken files", "serving.decoding"),
    Result("overload", "Answers and refusals by load", "serving.overload", document="overload.md"),
    Result("hostile", "Hostile requests: what other clients notice", "serving.hostile", document="overload.md"),
    Result("flood", "Clients that ignore Retry-After", "serving.flood", document="overload.md"),
    Result("soak", "Half an hour of mixed requests with device faults", "serving.soak", document="overload.md"),
    Result("scale-out", "What Ray Serve costs a request", "serving.ray_overhead", document="scaling.md"),
    Result("ray-ledger", "A replica and a node killed under load", "serving.ray_failover", document="scaling.md"),
    Result("gpu", "One GPU: tests, agreement, speed, profile, memory", "gpu"),
    *(
        Result(name, what, command=f"python -m benchmarks.quality.{module}", document=document)
        for name, what, module, document in (
            ("proposals", "The RPN against Selective Search", "proposals", "proposals.md"),
            ("misses", "Five missed objects, explained", "misses", "rpn-debugging.md"),
            ("overfit-vgg16", "PAPER_VGG16 overfitted on four images", "overfit", "train-your-own.md"),
            ("schedules", "Joint against 4-step alternating training", "schedules", "faster-rcnn.md"),
            ("lite-voc20-card", "Bundled weights: thresholds, false detections, misses, speed", "card", _CARD),
            ("lite-voc20-calibration", "Bundled weights: temperature scaling", "card --fold", _CARD),
        )
    ),
    *(
        Result(
            f"lite-voc20-{part}{suffix}",
            f"Bundled weights: average precision on {part}, {precision}",
            command="python -m benchmarks.quality.card",
            document=_CARD,
        )
        for part in ("validation", "test")
        for suffix, precision in (("", "fp32"), ("-bf16", "bf16"), ("-int8", "int8"))
    ),
    Result("bccd", "A detector trained on BCCD", command="frcnn evaluate", document="train-your-own.md"),
)


# ------------------------------------------------------------------------------------------------------ the main table
def rows() -> Iterator[tuple[str, ...]]:
    """Yield the rows of the main table."""
    yield from _gpu_rows()
    yield from _engine_rows()
    yield from _http_rows()
    yield from _startup_and_memory_rows()


def _engine_rows() -> Iterator[tuple[str, ...]]:
    """Yield our best form in each precision, one image at a time, beside torchvision and the exports."""
    points = [point for point in results.load("engine").get("points", {}).values() if point["batch"] == 1]
    for point in sorted(points, key=lambda p: (p["preset"] != "RESNET50_FPN", -len(widest_vectors(p["machine"])))):
        medians = {row["name"]: row["seconds"]["median"] * 1000 for row in point["rows"] if "seconds" in row}
        for precision, base in (("fp32", BASE), ("bf16", _AUTOCAST), ("int8", BASE)):
            ours = min((ms for name, ms in medians.items() if name.startswith(f"ours {precision}")), default=None)
            if ours is None:
                continue
            exports = {
                name: ms
                for name, ms in medians.items()
                if name.startswith(("ONNX Runtime", "OpenVINO")) and name.endswith(precision)
            }
            best = min(exports, key=exports.__getitem__, default=None)
            height, width = point["canvas"]
            command = f"python -m benchmarks.engine.compare --presets {point['preset']} --batches 1"
            yield (
                f"{point['preset']} at {height} x {width}, {precision}: ms per image",
                f"{ours:,.0f}",
                f"{medians[base]:,.0f} ({medians[base] / ours:.2f}x)" if base in medians else "",
                f"{best} {exports[best]:,.0f} ({exports[best] / ours:.2f}x)" if best else "",
                _machine(point["machine"]),
                f"`{command}`",
            )


def _http_rows() -> Iterator[tuple[str, ...]]:
    """Yield requests a second by clients, beside the best server of torchvision's detector and of ours."""
    runs = list(results.load("serve").get("runs", {}).values())
    for run in runs:
        for clients, ours in our_points(run).items():
            rate = ours["requests_per_s"]["median"]
            cells = []
            for engine in ("torchvision", "ours"):
                peer = best_peer(run, engine, clients)
                other = peer[1]["requests_per_s"]["median"] if peer else 0.0
                detector = "torchvision" if engine == "torchvision" else "our detector"
                cells.append(f"{peer[0]['name']} with {detector} {other:.1f} ({rate / other:.2f}x)" if peer else "")
            engines = "ours" if not cells[0] else "torchvision" if not cells[1] else "torchvision ours"
            command = f"python -m benchmarks.serving.compare --presets {run['preset']} --engines {engines}"
            plural = "" if clients == "1" else "s"
            name = f"{run['preset']} through HTTP, JPEG of 640 x 480, {clients} client{plural}: requests/s"
            yield name, f"{rate:.1f}", *cells, _machine(run["machine"]), f"`{command}`"


def _gpu_rows() -> Iterator[tuple[str, ...]]:
    """Yield images a second in half precision beside torchvision's, for each point that has both."""
    for run in results.load("gpu").values():
        about = run["sections"]["facts"]["points"]["machine"]
        for name, point in run["sections"].get("speed", {}).get("points", {}).items():
            rates = {row["name"]: row["images_per_s"] for row in point.get("rows", ()) if "images_per_s" in row}
            base = next((key for key in rates if key.startswith("torchvision fp16")), None)
            if base is None or "ours fp16" not in rates:
                continue
            yield (
                re.sub(r", (\d+) at once", r", batch \1", name) + ", fp16: images/s",
                f"{rates['ours fp16']:.1f}",
                f"{rates[base]:.1f} ({rates['ours fp16'] / rates[base]:.2f}x)",
                "",
                f"{about['card']}, {run['date'][:10]}",
                f"`{run['command']}`",
            )


def _startup_and_memory_rows() -> Iterator[tuple[str, ...]]:
    """Yield seconds to the first answer, and memory."""
    for preset, run in results.load("startup").items():
        seconds = run["seconds"]["first answer"]["median"]
        command = "`python -m benchmarks.serving.startup`"
        yield f"{preset}, process start to first answer: s", f"{seconds:.1f}", "", "", _machine(run["machine"]), command
    for preset, run in results.load("memory").items():
        what = f"{preset}, resident memory after {run['requests']:,} mixed requests: MiB"
        command = f"`python -m benchmarks.serving.memory --requests {run['requests']}`"
        yield what, f"{run['last_fifth_mib']:,.0f}", "", "", _machine(run["machine"]), command


def _machine(machine: Mapping[str, Any]) -> str:
    """Return processor, its widest instructions, cores and date."""
    name = str(machine["processor"]).partition(" (")[0]
    return f"{name} with {widest_vectors(machine)}, {machine['cores']} cores, {machine['date'][:10]}"


# --------------------------------------------------------------------------------------------------- the list of files
def files() -> Iterator[tuple[str, ...]]:
    """Yield a row for each JSON file."""
    for result in RESULTS:
        paths = sorted(results.RESULTS.glob("gpu-*.json" if result.name == "gpu" else f"{result.name}.json"))
        for path in paths:
            document = result.document
            shown_by = f"`python -m benchmarks.report {result.name}`"
            if document:
                shown_by = f"[{document.rpartition('/')[2]}]({document})"
            yield (
                f"[{path.name}](../benchmarks/results/{path.name})",
                result.what,
                date_of(json.loads(path.read_text())),
                f"`{result.shown_command}`",
                shown_by,
            )


def date_of(result: Any) -> str:
    """Return the latest date in a result, or an empty string where it has none."""
    dates = []
    if isinstance(result, Mapping):
        if isinstance(result.get("date"), str):
            dates.append(result["date"][:10])
        dates += [date_of(value) for value in result.values() if isinstance(value, Mapping)]
    return max(dates, default="")


# ------------------------------------------------------------------------------------------------------------ the page
def fill(page: str) -> str:
    """Return the page with its two tables as the results say."""
    main_table = results.markdown_table(COLUMNS, list(rows()), align="---")
    file_table = results.markdown_table(FILE_COLUMNS, list(files()), align="---")
    return markers.fill_all(page, {"main": f"\n{main_table}\n", "files": f"\n{file_table}\n"})


def tables(name: str) -> list[results.Table]:
    """Return the tables of one result."""
    result = next(result for result in RESULTS if result.name == name)
    module = importlib.import_module(f"benchmarks.{result.module}")
    return list(module.tables(results.load(name)))


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [result.name for result in RESULTS if result.module]
    parser.add_argument("name", nargs="?", choices=names, help="print this result's tables instead")
    arguments = parser.parse_args()
    if arguments.name:
        for table in tables(arguments.name):
            table.print()
    else:
        PAGE.write_text(fill(PAGE.read_text()))


if __name__ == "__main__":
    main()
