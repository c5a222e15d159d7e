"""The whole service with ``device=cuda`` on a simulated GPU: it starts, and its results are as on a CPU."""

import contextlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from model.detector import Detector
from model.structures import DetectOptions
from service.inference.detector import load_detector, resolve_devices
from service.inference.worker import Worker
from tests.gpu.simulated_gpu import SimulatedGPU, simulated_gpu
from tests.service.conftest import Live, serving

BOX = 0.2  # pixels that a side may differ from the CPU's, in fp32


@contextlib.contextmanager
def serving_on_gpu(monkeypatch: pytest.MonkeyPatch, **settings: object) -> Iterator[tuple[Live, SimulatedGPU]]:
    """Serve the bundled weights as ``frcnn serve --device cuda`` does; the worker's thread may use the GPU."""
    with simulated_gpu() as gpu:
        live_on_cpu: Callable[[Worker], None] = Worker._run_thread

        def live(worker: Worker) -> None:
            with gpu.thread():
                live_on_cpu(worker)

        monkeypatch.setattr(Worker, "_run_thread", live)
        with serving(load_detector, devices=resolve_devices, device="cuda", **settings) as service:
            yield service, gpu


@pytest.fixture(scope="module")
def gpu_service() -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        settings = {"precision": "fp32", "timeout_ms": 120_000}
        with serving_on_gpu(monkeypatch, **settings) as (live, _):
            yield live


@pytest.fixture(scope="module")
def on_cpu() -> Detector:
    return Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32")


def post(live: Live, route: str, body: bytes, **query: object) -> dict:  # type: ignore[type-arg]
    response = live.client.post(route, content=body, headers={"Content-Type": "image/jpeg"}, params=query)
    assert response.status_code == 200, response.text
    return response.json()  # type: ignore[no-any-return]


def test_it_starts_by_itself_in_half_precision_and_passes_the_self_test(
    monkeypatch: pytest.MonkeyPatch, cat_jpeg: bytes
) -> None:
    monkeypatch.setattr(Detector, "warm_up", lambda _: None)  # on nine canvases, which the other tests' service does
    with serving_on_gpu(monkeypatch) as (live, gpu):  # the start runs the self-test against the stored answer
        info = live.client.get("/model").json()
        assert info["device"] == "cuda:0"
        assert info["precision"] == "fp16"
        assert "fp16 was chosen for compute capability 9.0" in " ".join(info["optimizations"])
        assert live.client.get("/readyz").status_code == 200
        post(live, "/detect", cat_jpeg)
        gpu.reset()
        assert post(live, "/detect", cat_jpeg)["labels"] == ["cat"]
        assert gpu.wait_count <= 4, gpu.waits
        assert "frcnn_device_memory_bytes" in live.client.get("/metrics").text


def test_detect_gives_the_boxes_of_a_cpu(gpu_service: Live, on_cpu: Detector, chelsea: np.ndarray, encoded) -> None:  # type: ignore[no-untyped-def]
    file = BytesIO()
    Image.fromarray(chelsea).save(file, "PNG")
    response = post(gpu_service, "/detect", file.getvalue(), proposals=5)
    [expected] = on_cpu.detect([chelsea], DetectOptions(proposals=5))
    assert response["labels"] == list(expected.labels) == ["cat"]
    np.testing.assert_allclose(response["boxes"], expected.boxes.numpy(), atol=BOX)
    np.testing.assert_allclose(response["scores"], expected.scores.numpy(), atol=1e-4)
    assert expected.proposals is not None
    np.testing.assert_allclose(response["proposals"]["boxes"], expected.proposals.boxes.numpy(), atol=BOX)


def test_proposals_and_explanations_work(gpu_service: Live, cat_jpeg: bytes) -> None:
    proposals = post(gpu_service, "/proposals", cat_jpeg, limit=3)
    assert proposals["count"] == 300
    assert proposals["outcomes"] == ["kept"] * 3
    assert proposals["objectness"][0] > 0.99
    assert [level["anchors"] for level in proposals["stage_counts"]] == [14400, 3600, 900]
    files = {"image": ("cat.jpg", cat_jpeg, "image/jpeg")}
    data = {"boxes": json.dumps([[9, 4, 403, 300]]), "labels": json.dumps(["cat"])}
    response = gpu_service.client.post("/explain", files=files, data=data)
    assert response.status_code == 200, response.text
    assert response.json()["explanations"][0]["stage"] == "found"


def test_requests_with_all_kinds_of_options_share_batches(gpu_service: Live, cat_jpeg: bytes) -> None:
    queries: list[dict[str, object]] = [
        {},
        {"score_threshold": 0.01, "nms_threshold": 0.95, "max_detections": 3},
        {"score_threshold": 0.01, "nms_threshold": 0.95, "classes": ["cat", "dog"]},
        {"proposals": 4},
        {"regions": json.dumps([[9, 4, 403, 300]])},
        {"score_threshold": 0.999},
    ]
    alone = [post(gpu_service, "/detect", cat_jpeg, **query) for query in queries]
    with ThreadPoolExecutor(12) as threads:
        together = list(threads.map(lambda query: post(gpu_service, "/detect", cat_jpeg, **query), queries * 2))
    assert max(response["batch_size"] for response in together) > 1
    for response, expected in zip(together, alone * 2, strict=True):
        assert response["labels"] == expected["labels"]
        boxes, expected_boxes = (np.reshape(body["boxes"], (-1, 4)) for body in (response, expected))
        np.testing.assert_allclose(boxes, expected_boxes, atol=BOX)
    assert len(alone[1]["boxes"]) == 3
    assert set(alone[2]["labels"]) <= {"cat", "dog"}
    assert len(alone[3]["proposals"]["boxes"]) == 4
    assert alone[4]["labels"] == ["cat"]
    assert alone[5]["labels"] == []
