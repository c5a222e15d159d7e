"""Write the tables of docs/scaling.md from what was measured: python docs/scaling.py; --check says whether they are so.

The capacity model multiplies measured processor times by assumed machines. What is assumed is an option of this
command, and is named in the table; everything beyond one replica is extrapolated.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE / "scaling.md"
RESULTS = HERE.parent / "benchmarks/results"
HOLE = r"(<!-- made: {} -->\n).*?(<!-- end -->)"
HOLES = ("ledger", "overhead", "parts", "machine", "cluster")
SIZES = (1, 8, 64, 1000)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown; every column but the first is a figure."""
    lines = [head, ("---", *("---:" for _ in head[1:])), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(values: list[float], digits: int = 1) -> str:
    """Median, and least to most."""
    middle, least, most = values
    return f"{middle:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def overhead(measured: dict[str, Any]) -> str:
    """Both services, case by case."""
    rows = []
    for case, by in measured["cases"].items():
        rows.append((
            case,
            *(spread(by[name]["median_ms"]) for name in ("plain", "ray")),
            *(spread(by[name]["per_s"]) for name in ("plain", "ray")),
            f"{by['ray']['median_ms'][0] - by['plain']['median_ms'][0]:+.1f}",
        ))  # fmt: skip
    head = ("request", "plain, ms", "Ray, ms", "plain, 1/s", "Ray, 1/s", "Ray adds, ms")
    return (
        f"`{measured['command']}`, {conditions(measured)}. Medians of {measured['rounds']} rounds (least to most).\n\n"
        + table(head, rows)
    )


def conditions(measured: dict[str, Any]) -> str:
    """When and where, and whether the figures are to be trusted."""
    load = measured["load_average"]
    busy = "" if load < 1.5 * measured["cores"] else ", **other work was running: to be measured again**"
    return f"{measured['date']}, {measured['cores']} cores, load average {load:.1f}{busy}"


def parts(measured: dict[str, Any]) -> dict[str, float]:
    """Milliseconds of one processor core a picture, by part, and bytes."""
    plain, ray = (measured["cases"]["/detect, 8 clients"][name] for name in ("plain", "ray"))
    alone = measured["cases"]["/detect, 1 client"]["plain"]
    hop = {name: by["processor_ms"]["replica"][0] for name, by in measured["cases"]["/livez, 8 clients"].items()}
    whole, decode = plain["processor_ms"]["replica"][0], alone["decode_ms"][0]
    rays = ray["processor_ms"]
    return {
        "decode": decode,
        # What of a replica's time is neither decoding nor the network; on a busy machine stages take longer than their
        # processor time, and the difference would come out too small: then what a request without a picture takes.
        "loop": max(hop["plain"], whole - decode - plain["engine_ms"][0]),
        "ray_loop": max(0.0, hop["ray"] - hop["plain"]),
        "proxy": rays["proxy"][0],
        "raylet": rays["raylet"][0],
        "engine": plain["engine_ms"][0],
        "controller": ray["processor_share"]["controller"][0],
        "bytes_in": float(measured["picture_bytes"]),
        "bytes_out": plain["answer_bytes"][0],
    }


def measured_parts(measured: dict[str, Any]) -> str:
    """What the model counts with."""
    part = parts(measured)
    rows = [
        ("decoding, in threads", f"{part['decode']:.2f} ms"),
        ("a replica's event loop: HTTP, queue, JSON", f"{part['loop']:.2f} ms"),
        ("the same loop under Ray, more, of a request without a picture", f"{part['ray_loop']:.2f} ms"),
        ("Ray's proxy, one process a node", f"{part['proxy']:.2f} ms"),
        ("Ray's raylet", f"{part['raylet']:.2f} ms"),
        ("the network, on one CPU thread (on a GPU: assumed below)", f"{part['engine']:.1f} ms"),
        ("Ray's controller, with one replica, of a core", f"{100 * part['controller']:.1f} %"),
        ("picture in, answer out", f"{part['bytes_in'] / 1000:.0f} kB, {part['bytes_out'] / 1000:.1f} kB"),
    ]
    return table(("part", "a picture"), rows)


def limits(part: dict[str, float], given: argparse.Namespace, gpus: int, proxies: int, ray: bool) -> dict[str, float]:
    """Pictures/s that each part of one machine with so many GPUs can do, every other part being free."""
    loop = part["loop"] + (part["ray_loop"] if ray else 0)
    host = part["decode"] + loop + (part["proxy"] + part["raylet"] if ray else 0)
    found = {
        "GPU": gpus * given.gpu_rate,
        "replicas' event loops": gpus * 1000 / loop,
        "processor cores": given.cores * 1000 / host,
        "network card": given.gbit * 1e9 / 8 / part["bytes_in"],
    }
    if ray:
        found["Ray's proxy"] = proxies * 1000 / part["proxy"]
    return found


def machine(part: dict[str, float], given: argparse.Namespace) -> str:
    """What each part of one machine could do."""
    kinds = {
        "plain": limits(part, given, given.gpus, 0, False),
        "Ray, one node a machine": limits(part, given, given.gpus, 1, True),
        "Ray, one node a GPU": limits(part, given, given.gpus, given.gpus, True),
    }
    names = list(kinds["Ray, one node a GPU"])
    rows = [(name, *(f"{by[name]:,.0f}" if name in by else "-" for by in kinds.values())) for name in names]
    rows.append(("**saturates first**", *(min(by, key=by.__getitem__) for by in kinds.values())))
    return table(("pictures/s that it could do", *kinds), rows)


def cluster(part: dict[str, float], given: argparse.Namespace) -> str:
    """From one GPU to a thousand."""
    rows = []
    for gpus in SIZES:
        machines = -(-gpus // given.gpus)
        each = min(gpus, given.gpus)
        for kind, proxies, ray in (("plain", 0, False), ("Ray, one node a GPU", each, True)):
            by = limits(part, given, each, proxies, ray)
            by["processor cores"] *= each / given.gpus  # a smaller machine has fewer
            first = min(by, key=by.__getitem__)
            rate = by[first] * gpus / each
            cost = gpus * given.price / (rate * 3600) * 1e6
            controller = f"{gpus * part['controller']:.1f}" if ray else "-"
            incoming = rate * part["bytes_in"] * 8 / 1e9
            rows.append(
                (f"{gpus}", kind, f"{machines}", f"{rate:,.0f}", first, f"{incoming:,.1f}", controller, f"{cost:.2f}")
            )
    head = (
        "GPUs",
        "kind",
        "machines",
        "pictures/s",
        "saturates first",
        "Gbit/s in",
        "controller, cores",
        "a million pictures",
    )
    return table(head, rows)


def ledger(found: dict[str, Any]) -> str:
    """What the clients saw of two failures."""
    rows = [
        (phase["phase"], *(f"{phase[name]}" for name in ("replicas", "answered", "per_s", "retries")))
        for phase in found["phases"]
    ]
    counted = ", ".join(f"{name} {found[name]}" for name in ("sent", "answered", "retries", "wrong"))
    head = ("phase", "replicas at its end", "answers", "answers/s", "retries")
    lost = f"**lost {len(found['lost'])}**; slowest answer {found['slowest_s']:.1f} s"
    told = f"`{found['command']}`, {conditions(found)}: {counted}, {lost}.\n\n"
    return told + table(head, rows)


def main() -> None:
    """Fill the holes of the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-rate", type=float, default=300, help="assumed: pictures/s of one GPU's network")
    parser.add_argument("--gpus", type=int, default=8, help="assumed: GPUs in a machine")
    parser.add_argument("--cores", type=int, default=96, help="assumed: processor cores in a machine")
    parser.add_argument("--gbit", type=float, default=25, help="assumed: Gbit/s of a machine's network card")
    parser.add_argument(
        "--price", type=float, default=2.0, help="assumed: price of a GPU's hour, with its share of all"
    )
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    made = {}
    if (path := RESULTS / "scale-out.json").exists():
        measured = json.loads(path.read_text())
        part = parts(measured)
        assumed = (
            f"Assumed: {given.gpu_rate:g} pictures/s a GPU; {given.gpus} GPUs, {given.cores} cores and "
            f"{given.gbit:g} Gbit/s a machine; {given.price:g} an hour for a GPU with its share of the machine.\n\n"
        )
        made |= {
            "overhead": overhead(measured),
            "parts": measured_parts(measured),
            "machine": assumed + machine(part, given),
            "cluster": assumed + cluster(part, given),
        }
    if (path := RESULTS / "ray-ledger.json").exists():
        made["ledger"] = ledger(json.loads(path.read_text()))
    page = old = PAGE.read_text()
    for name in HOLES:
        text = made.get(name, "Not measured yet: see benchmarks/serving/ray_overhead.py.\n")
        page = re.sub(HOLE.format(name), lambda m, text=text: m[1] + text + m[2], page, flags=re.DOTALL)
    if given.check:
        sys.exit(f"{PAGE.name} is not what was measured: run python docs/scaling.py" if page != old else 0)
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
