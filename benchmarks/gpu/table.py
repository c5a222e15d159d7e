"""Make one table of a whole run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.gpu.section import Data
from benchmarks.lib import results

COLUMNS = ("section", "measured", "result", "compared with")
Row = tuple[str, str, str, str]
_NAMED = ("torch", "torchvision", "triton", "python")


def tables(runs: Mapping[str, Data]) -> list[results.Table]:
    """Return a table for each run, from results by the name of their file."""
    return [results.Table(_title(run), COLUMNS, list(rows(run))) for run in runs.values()]


def _title(run: Data) -> str:
    machine = run["sections"].get("facts", {}).get("points", {}).get("machine", {})
    versions = machine.get("versions", {})
    smi = machine.get("nvidia_smi")
    driver = smi.get("driver_version") if isinstance(smi, Mapping) else None
    parts = [
        str(machine.get("card") or f"No GPU: {machine.get('processor', run['device'])}"),
        f"compute capability {machine['compute_capability']}" if "compute_capability" in machine else "",
        f"{machine['memory_mib']:,} MiB" if "memory_mib" in machine else "",
        f"driver {driver}" if driver else "",
        f"CUDA {machine.get('cuda')}, cuDNN {machine['cudnn']}" if machine.get("cudnn") else "",
        ", ".join(f"{name} {versions[name]}" for name in _NAMED if name in versions),
        f"{machine.get('processor')}, {machine.get('cores')} cores" if machine.get("card") else "",
        f"commit {run['revision']}",
        run["date"][:10],
        f"{run.get('took_s', 0):.0f} s of at most {run['limit_s']:.0f}",
        "tiny sizes: no real figures" if run["tiny"] else "",
    ]
    return "; ".join(part for part in parts if part) + "."


def rows(run: Data) -> Iterator[Row]:
    """Yield a row for every point and every contender of it."""
    peaks = run["sections"].get("profile", {}).get("points", {}).get("peaks", {})
    for section, about in run["sections"].items():
        for name, point in about["points"].items():
            cells = list(_SHOWN.get(section, _plain)(name, point, peaks)) if point["status"] == "measured" else []
            if not cells or point["status"] != "measured":
                cells = [(name, _status(point), "")]
            yield from ((section, *(_line(cell) for cell in row)) for row in cells)


def _line(cell: str) -> str:
    return " ".join(cell.split())


def _status(point: Mapping[str, Any]) -> str:
    """Return why a point was not measured."""
    if point["status"] == "failed":
        return f"FAILED: {str(point.get('error', '')).strip().rpartition(chr(10))[2][:200]}"
    if point["status"] == "skipped":
        return f"skipped: {point.get('why', '')}"[:200]
    return str(point["status"])


Cells = Iterator[tuple[str, str, str]]


def _plain(name: str, point: Data, _: Data) -> Cells:
    """Yield that the point went well."""
    yield name, "as stored" if name.startswith("self-test") else "", ""


def _facts(name: str, point: Data, _: Data) -> Cells:
    smi = point["nvidia_smi"]
    yield name, str(point["card"] or "no GPU"), ", ".join(smi.values()) if isinstance(smi, Mapping) else str(smi or "")


def _tests(name: str, point: Data, _: Data) -> Cells:
    yield name, ", ".join(f"{count} {kind}" for kind, count in point["counts"].items()), ""


def _agreement(name: str, point: Data, peaks: Data) -> Cells:
    if "rows" not in point:
        yield from _plain(name, point, peaks)
        return
    for row in point["rows"]:
        if "matched" not in row:
            yield f"{name}: {row['name']}", _status(row), ""
            continue
        odd = row["only_here"] + row["only_there"]
        limit = row["limits"]
        result = f"{row['matched']} pairs, {odd} without; {row['box_px']:.3g} px, score {row['score']:.2g}"
        within = f"{limit['box_px']:g} px, {limit['score']:g}, {limit['unmatched']:.0%} without"
        bad = "FAILED: " if row["status"] == "failed" else ""
        yield f"{name}: {row['name']}", bad + result, f"limit {within}"


def _speed(name: str, point: Data, _: Data) -> Cells:
    medians = {row["name"]: row["median_ms"] for row in point["rows"] if "median_ms" in row}
    others = {key: value for key, value in medians.items() if key.startswith("torchvision")}
    for row in point["rows"]:
        if "median_ms" not in row:
            yield f"{name}: {row['name']}", _status(row), ""
            continue
        result = f"{row['median_ms']:.2f} ms ({row['min_ms']:.2f} to {row['max_ms']:.2f}, p90 {row['p90_ms']:.2f})"
        ratios = [
            f"{value / row['median_ms']:.2f}x {key.removeprefix('torchvision ').partition(',')[0]}"
            for key, value in others.items()
        ]
        beside = f"torchvision: {', '.join(ratios)}" if ratios and row["name"].startswith("ours") else ""
        if "torch.compile" in row["name"]:
            beside = f"compiled and warm after {row['ready_s']:.0f} s"
        yield f"{name}: {row['name']}", f"{row['images_per_s']:.1f} images/s; {result}", beside


def _profile(name: str, point: Data, peaks: Data) -> Cells:
    if name == "peaks":
        products = ", ".join(f"{kind} {product['tflops']:.3g}" for kind, product in point["products"].items())
        yield f"products of {point['side']} x {point['side']}", f"{products} TFLOP/s", ""
        yield "copy on the device", f"{point['copy_gb_per_s']:,.0f} GB/s read and written", ""
        return
    peak = peaks.get("products", {}).get(point["precision"], {}).get("tflops")
    share = f", {point['tflops'] / peak:.1%} of the product's" if peak else ""
    yield (
        f"{name}, {point['precision']}",
        f"{point['plain_ms']:.2f} ms; {point['tflops']:.3g} TFLOP/s{share}; {point['gflop']:.1f} GFLOP",
        "" if point["kernels"] else "no kernels: not a GPU",
    )
    if not point["kernels"]:
        return
    yield (
        f"{name}, a call in the profiler",
        f"{point['kernels']:.0f} kernels, {point['launches']:.0f} launches ({point['graph_launches']:.0f} of graphs), "
        f"{point['waits']:.0f} waits of the host, {point['copies']:.0f} copies",
        f"busy {point['busy_ms']:.2f} ms; idle {point['idle_share']:.0%} there, "
        f"{point['idle_share_unprofiled']:.0%} without the profiler",
    )
    for kernel in point["top_kernels"]:
        yield f"{name}: kernel {kernel['name'][:70]}", f"{kernel['ms']:.3f} ms, {kernel['share']:.1%}", ""


def _memory(name: str, point: Data, _: Data) -> Cells:
    if point["allocated_mib"] is None:
        yield f"{name}, {point['precision']}", "", "not counted on a CPU"
        return
    height, width = point["canvas"]
    result = f"{point['allocated_mib']:,.0f} MiB allocated, {point['reserved_mib']:,.0f} reserved"
    ready = point["ready"]
    yield f"{name} of {height} x {width}, {point['precision']}", result, f"{ready['allocated_mib']:,.0f} when ready"


def _training(name: str, point: Data, _: Data) -> Cells:
    height, width = point["canvas"]
    result = f"{point['steps_per_s']:.2f} steps/s, {point['images_per_s']:.1f} images/s"
    memory = f"{point['allocated_mib']:,.0f} MiB allocated" if point["allocated_mib"] else ""
    yield f"{name}, {height} x {width}", result, memory


def _http(name: str, point: Data, _: Data) -> Cells:
    for row in point["rows"]:
        if "p50_ms" not in row:
            yield f"{name}: {row['name']}", _status(row), ""
            continue
        others = {status: count for status, count in row["statuses"].items() if status != "200"}
        result = f"{row['requests_per_s']:.1f} requests/s, p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms"
        yield f"{name}: {row['name']}", result, ", ".join(f"{count} x {status}" for status, count in others.items())


_SHOWN = {
    "facts": _facts,
    "tests": _tests,
    "agreement": _agreement,
    "speed": _speed,
    "profile": _profile,
    "memory": _memory,
    "training": _training,
    "http": _http,
}
