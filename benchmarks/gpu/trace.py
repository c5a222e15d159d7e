"""Read the trace of torch's profiler: kernels, waits of the host, and how long the device was idle."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

CALL = "benchmark call"  # the annotation around each call
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_OF_HOST = ("cuda_runtime", "cuda_driver")
_LAUNCHES = ("LaunchKernel", "GraphLaunch")
_WAITS = ("StreamSynchronize", "DeviceSynchronize", "EventSynchronize")
TOP = 10


def busy(spans: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of the spans (begin, end) lasts."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def read(path: Path, calls: int) -> dict[str, Any]:
    """Return the figures of a trace file that holds so many calls, each per call."""
    return figures(json.loads(path.read_text())["traceEvents"], calls)


def figures(events: Iterable[Mapping[str, Any]], calls: int) -> dict[str, Any]:
    """Return the figures of a trace's events, whose times are in microseconds."""
    whole = [e for e in events if e.get("ph") == "X" and "ts" in e]
    spans = [(e["ts"], e["ts"] + e.get("dur", 0)) for e in whole if e.get("name") == CALL and "gpu" not in e["cat"]]
    begin, end = min(b for b, _ in spans), max(e for _, e in spans)
    inside = [e for e in whole if begin <= e["ts"] <= end]
    device = [e for e in inside if e.get("cat") in _ON_DEVICE]
    host = Counter(e["name"] for e in inside if e.get("cat") in _OF_HOST)
    kernels = [e for e in device if e["cat"] == "kernel"]
    times: Counter[str] = Counter()
    for event in kernels:
        times[event["name"]] += event["dur"]
    counts = Counter(e["name"] for e in kernels)
    working = busy((e["ts"], e["ts"] + e["dur"]) for e in device)
    all_kernels = sum(times.values())
    return {
        "kernels": len(kernels) / calls,
        "launches": sum(count for name, count in host.items() if any(word in name for word in _LAUNCHES)) / calls,
        "graph_launches": sum(count for name, count in host.items() if "GraphLaunch" in name) / calls,
        "waits": sum(count for name, count in host.items() if any(word in name for word in _WAITS)) / calls,
        "copies": sum(count for name, count in host.items() if "Memcpy" in name) / calls,
        "host_calls": {name: count / calls for name, count in host.most_common(20)},
        "span_ms": (end - begin) / 1000 / calls,
        "busy_ms": working / 1000 / calls,
        "idle_share": 1 - working / (end - begin) if kernels else None,
        "top_kernels": [
            {
                "name": name[:120],
                "ms": taken / 1000 / calls,
                "share": taken / all_kernels,
                "launches": counts[name] / calls,
            }
            for name, taken in times.most_common(TOP)
        ],
    }
