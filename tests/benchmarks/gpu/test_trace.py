from typing import Any

import pytest

from benchmarks.gpu import trace


def test_a_trace_gives_figures_for_each_call() -> None:
    def event(cat: str, name: str, ts: float, dur: float) -> dict[str, Any]:
        return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur}

    events = [
        event("kernel", "before", 0, 50),
        event("user_annotation", trace.CALL, 100, 500),
        event("gpu_user_annotation", trace.CALL, 90, 900),
        event("user_annotation", trace.CALL, 600, 500),
        event("cuda_runtime", "cudaLaunchKernel", 110, 5),
        event("cuda_runtime", "cudaGraphLaunch", 120, 5),
        event("cuda_driver", "cuLaunchKernelEx", 130, 5),
        event("cuda_runtime", "cudaMemcpyAsync", 140, 5),
        event("cuda_runtime", "cudaStreamSynchronize", 150, 5),
        event("kernel", "conv", 200, 100),
        event("kernel", "conv", 250, 100),  # beside the other on another stream
        event("kernel", "nms", 700, 50),
        event("gpu_memcpy", "Memcpy DtoH", 800, 50),
        {"ph": "M", "name": "process_name"},
    ]
    figures = trace.figures(events, calls=2)
    assert figures["kernels"] == 1.5
    assert figures["launches"] == 1.5
    assert figures["graph_launches"] == figures["waits"] == figures["copies"] == 0.5
    assert figures["span_ms"] == 0.5
    assert figures["busy_ms"] == pytest.approx(0.125)
    assert figures["idle_share"] == pytest.approx(0.75)
    assert [kernel["name"] for kernel in figures["top_kernels"]] == ["conv", "nms"]
    assert figures["top_kernels"][0]["share"] == pytest.approx(0.8)
