"""The tables of docs/scaling.md, from what ``benchmarks.serving.ray_overhead`` and ``ray_failover`` measured.

The capacity model multiplies measured processor times by assumed machines. Everything beyond one replica is
extrapolated, and the page says so.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.docs.page import markdown_table

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks/results"
GPU_COUNTS = (1, 8, 64, 1000)


def _assumption(default: float, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Assumptions:
    """The machine that the capacity model assumes; each field is an option of the command."""

    gpu_rate: float = _assumption(300, "images/s of one GPU's network")
    gpus: float = _assumption(8, "GPUs in a machine")
    cores: float = _assumption(96, "processor cores in a machine")
    gbit: float = _assumption(25, "Gbit/s of a machine's network card")
    price: float = _assumption(2, "price of a GPU for an hour, with its share of the machine")

    def __str__(self) -> str:
        return (
            f"Assumed: {self.gpu_rate:g} images/s a GPU; {self.gpus:g} GPUs, {self.cores:g} cores and "
            f"{self.gbit:g} Gbit/s a machine; {self.price:g} an hour for a GPU with its share of the machine."
        )


def sections(assumptions: Assumptions) -> dict[str, str]:
    """Return the page's tables by the name of their section."""
    measured = json.loads((RESULTS / "scale-out.json").read_text())
    costs = _costs(measured)
    return {
        "ledger": _ledger(json.loads((RESULTS / "ray-ledger.json").read_text())),
        "overhead": _overhead(measured),
        "parts": _parts(costs),
        "machine": f"{assumptions}\n\n{_machine(costs, assumptions)}",
        "cluster": f"{assumptions}\n\n{_cluster(costs, assumptions)}",
    }


def _conditions(measured: dict[str, Any]) -> str:
    """Return when and where it was measured, and whether other work disturbed it."""
    load = measured["load_average"]
    busy = "" if load < 1.5 * measured["cores"] else ", **other work was running: to be measured again**"
    return f"{measured['date']}, {measured['cores']} cores, load average {load:.1f}{busy}"


def _ledger(measured: dict[str, Any]) -> str:
    """Return the table of what clients got while a replica's process and a node were killed."""
    rows = [
        (phase["phase"], *(f"{phase[name]}" for name in ("replicas", "answered", "per_s", "retries")))
        for phase in measured["phases"]
    ]
    counts = ", ".join(f"{name} {measured[name]}" for name in ("sent", "answered", "retries", "wrong"))
    lost = f"**lost {len(measured['lost'])}**; slowest answer {measured['slowest_s']:.1f} s"
    header = ("phase", "replicas at its end", "answers", "answers/s", "retries")
    title = f"`{measured['command']}`, {_conditions(measured)}: {counts}, {lost}.\n\n"
    return title + markdown_table(header, rows, numeric=True)


def _overhead(measured: dict[str, Any]) -> str:
    """Return the table that compares the plain service with Ray Serve."""

    def spread(values: list[float]) -> str:
        median, least, most = values
        return f"{median:.1f} ({least:.1f} to {most:.1f})"

    rows = [
        (
            case,
            *(spread(by_service[name]["median_ms"]) for name in ("plain", "ray")),
            *(spread(by_service[name]["per_s"]) for name in ("plain", "ray")),
            f"{by_service['ray']['median_ms'][0] - by_service['plain']['median_ms'][0]:+.1f}",
        )
        for case, by_service in measured["cases"].items()
    ]
    header = ("request", "plain, ms", "Ray, ms", "plain, 1/s", "Ray, 1/s", "Ray adds, ms")
    title = f"`{measured['command']}`, {_conditions(measured)}. Medians of {measured['rounds']} rounds (least to most)."
    return f"{title}\n\n{markdown_table(header, rows, numeric=True)}"


def _costs(measured: dict[str, Any]) -> dict[str, float]:
    """Return milliseconds of one core an image, by part; the controller's share of a core; bytes in and out."""
    plain, ray = (measured["cases"]["/detect, 8 clients"][name] for name in ("plain", "ray"))
    single = measured["cases"]["/detect, 1 client"]["plain"]
    hop = {name: by["processor_ms"]["replica"][0] for name, by in measured["cases"]["/livez, 8 clients"].items()}
    decode = single["decode_ms"][0]
    return {
        "decode": decode,
        # The part of a replica's time that is neither decoding nor the network. On a busy machine stages take longer
        # than their processor time, so that the difference is too small: then the time of a request without an image.
        "loop": max(hop["plain"], plain["processor_ms"]["replica"][0] - decode - plain["engine_ms"][0]),
        "ray_loop": max(0.0, hop["ray"] - hop["plain"]),
        "proxy": ray["processor_ms"]["proxy"][0],
        "raylet": ray["processor_ms"]["raylet"][0],
        "network": plain["engine_ms"][0],
        "controller": ray["processor_share"]["controller"][0],
        "bytes_in": float(measured["image_bytes"]),
        "bytes_out": plain["response_bytes"][0],
    }


def _parts(costs: dict[str, float]) -> str:
    """Return the table of the measured figures that the capacity model uses."""
    rows = [
        ("decoding, in threads", f"{costs['decode']:.2f} ms"),
        ("a replica's event loop: HTTP, queue, JSON", f"{costs['loop']:.2f} ms"),
        ("more of the same loop under Ray, for a request without an image", f"{costs['ray_loop']:.2f} ms"),
        ("Ray's proxy, one process a node", f"{costs['proxy']:.2f} ms"),
        ("Ray's raylet", f"{costs['raylet']:.2f} ms"),
        ("the network, on one CPU thread (on a GPU: assumed below)", f"{costs['network']:.1f} ms"),
        ("Ray's controller, with one replica, of a core", f"{100 * costs['controller']:.1f} %"),
        ("image in, answer out", f"{costs['bytes_in'] / 1000:.0f} kB, {costs['bytes_out'] / 1000:.1f} kB"),
    ]
    return markdown_table(("part", "an image"), rows, numeric=True)


def _limits(
    costs: dict[str, float], assumptions: Assumptions, gpus: float, proxies: float, *, ray: bool
) -> dict[str, float]:
    """Return the images/s that each part of a machine with ``gpus`` GPUs can process if no other part limits it."""
    loop = costs["loop"] + (costs["ray_loop"] if ray else 0)
    host = costs["decode"] + loop + (costs["proxy"] + costs["raylet"] if ray else 0)
    limits = {
        "GPU": gpus * assumptions.gpu_rate,
        "replicas' event loops": gpus * 1000 / loop,
        "processor cores": assumptions.cores * 1000 / host,
        "network card": assumptions.gbit * 1e9 / 8 / costs["bytes_in"],
    }
    if ray:
        limits["Ray's proxy"] = proxies * 1000 / costs["proxy"]
    return limits


def _machine(costs: dict[str, float], assumptions: Assumptions) -> str:
    """Return the table of the limit of each part of one machine."""
    gpus = assumptions.gpus
    kinds = {
        "plain": _limits(costs, assumptions, gpus, 0, ray=False),
        "Ray, one node a machine": _limits(costs, assumptions, gpus, 1, ray=True),
        "Ray, one node a GPU": _limits(costs, assumptions, gpus, gpus, ray=True),
    }
    rows = [
        (name, *(f"{limits[name]:,.0f}" if name in limits else "-" for limits in kinds.values()))
        for name in kinds["Ray, one node a GPU"]
    ]
    rows.append(("**saturates first**", *(min(limits, key=limits.__getitem__) for limits in kinds.values())))
    return markdown_table(("images/s, at most", *kinds), rows, numeric=True)


def _cluster(costs: dict[str, float], assumptions: Assumptions) -> str:
    """Return the table from one GPU to a thousand."""
    rows = []
    for gpus in GPU_COUNTS:
        machines = -(-gpus // assumptions.gpus)
        per_machine = min(gpus, assumptions.gpus)
        for kind, proxies, ray in (("plain", 0, False), ("Ray, one node a GPU", per_machine, True)):
            limits = _limits(costs, assumptions, per_machine, proxies, ray=ray)
            limits["processor cores"] *= per_machine / assumptions.gpus  # a smaller machine has fewer
            first = min(limits, key=limits.__getitem__)
            rate = limits[first] * gpus / per_machine
            price = gpus * assumptions.price / (rate * 3600) * 1e6
            controller = f"{gpus * costs['controller']:.1f}" if ray else "-"
            incoming = f"{rate * costs['bytes_in'] * 8 / 1e9:,.1f}"
            rows.append(
                (f"{gpus}", kind, f"{machines:.0f}", f"{rate:,.0f}", first, incoming, controller, f"{price:.2f}")
            )
    header = (
        "GPUs",
        "kind",
        "machines",
        "images/s",
        "saturates first",
        "Gbit/s in",
        "controller, cores",
        "a million images",
    )
    return markdown_table(header, rows, numeric=True)
