"""Fixtures that serve on a real port, with a small random detector or with one whose faults a test sets."""

import contextlib
import dataclasses
import io
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

from model.detector import Detector
from model.structures import Detections, DetectOptions, DetectorInfo, NotFiniteError
from service.app import create_app
from service.images.decoding import prepare_pillow
from service.server.http_protocol import LimitedHttpProtocol
from service.settings import Settings, load_settings
from tests.service.image_processes import IMAGE_PROCESSES

CLASSES = ("__background__", "cat", "dog", "person")


class FaultyDetector:
    """A small detector whose device can be slow, fail on a marked image, run out of memory or break for good.

    An image is marked by its top left pixel: ``POISON`` fails alone. Set the attributes from the test.
    """

    POISON = (255, 0, 255)

    def __init__(self) -> None:
        self.gate = threading.Event()  # cleared: every call waits until it is set
        self.gate.set()
        self.delay = 0.0
        self.memory_for = 1000  # images
        self.broken = False
        self.poison_message = "this image is poison"
        self.poison_overflows = False  # its values are not finite, and the other images' are
        self.batches: list[list[tuple[int, int]]] = []
        self.options: list[list[DetectOptions]] = []

    @property
    def info(self) -> DetectorInfo:
        return DetectorInfo(
            "fake",
            "LITE",
            CLASSES,
            "fp32",
            "cpu",
            ((64, 64), (128, 128)),
            (),
            0,
            None,
            {},
            0.05,
            0.5,
            100,
            10,
            (),
        )

    def canvas_for(self, height: int, width: int) -> tuple[int, int]:
        side = 64 if max(height, width) <= 64 else 128
        return side, side

    def warm_up(self) -> None:
        pass

    def detect(self, images: Sequence[np.ndarray], options: Sequence[DetectOptions]) -> list[Detections]:
        self.batches.append([image.shape[:2] for image in images])
        self.options.append(list(options))
        assert self.gate.wait(20)
        time.sleep(self.delay)
        if self.broken:
            raise RuntimeError("device-side assert triggered")
        if len(images) > self.memory_for:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
        poisoned = [tuple(image[0, 0]) == self.POISON for image in images]
        if any(poisoned) and not self.poison_overflows:
            raise RuntimeError(self.poison_message)
        sizes = [option.full_size or image.shape[:2] for image, option in zip(images, options, strict=True)]
        results = [self._detections(size, len(images)) for size in sizes]
        if any(poisoned):
            finite = [None if bad else result for bad, result in zip(poisoned, results, strict=True)]
            raise NotFiniteError(finite, "fp16")
        return results

    @staticmethod
    def _detections(size: tuple[int, int], batch_size: int) -> Detections:
        """Return one box as large as the image, which shows whose detections they are."""
        height, width = size
        return Detections(
            boxes=torch.tensor([[0.0, 0.0, float(width), float(height)]]),
            scores=torch.tensor([0.9]),
            class_ids=torch.tensor([1]),
            labels=("cat",),
            proposal_indices=torch.tensor([0]),
            timings={"transform": 0.001, "backbone": 0.002, "rpn": 0.001, "roi_head": 0.001, "postprocess": 0.001},
            batch_size=batch_size,
        )


@dataclasses.dataclass
class Live:
    """A running service, and an HTTP client for it."""

    url: str
    client: httpx.Client
    app: object

    def detect(self, body: bytes, **kwargs: object) -> httpx.Response:
        headers = {"Content-Type": "image/png"} | dict(kwargs.pop("headers", {}))  # type: ignore[call-overload]
        return self.client.post("/detect", content=body, headers=headers, **kwargs)

    def metric(self, name: str, **labels: str) -> float:
        value = self.app.state.pipeline.metrics.registry.get_sample_value(name, labels)  # type: ignore[attr-defined]
        return value or 0.0


@contextlib.contextmanager
def serving(
    factory: Callable[[Settings], object], devices: Callable[[str], Sequence[str]] | None = None, **settings: object
) -> Iterator[Live]:
    app = create_app(
        load_settings(**({"port": 0} | settings)),
        detector_factory=factory,
        devices=devices,
        image_processes=IMAGE_PROCESSES,
    )
    # Not service.server's Server: when a test kills the worker, it would end the test process.
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_config=None, http=LimitedHttpProtocol, ws="none", timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < until
            time.sleep(0.01)
        url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        with httpx.Client(base_url=url, timeout=30) as client:
            yield Live(url, client, app)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(autouse=True)
def _pillow_as_served() -> Iterator[None]:
    """Add the app's warning filter again: pytest resets the filters for each test."""
    with warnings.catch_warnings():
        prepare_pillow()
        yield


@pytest.fixture(scope="session")
def service() -> Iterator[Live]:
    """Serve a real LITE with random weights."""
    with serving(
        lambda _: Detector.random("LITE", seed=0, classes=CLASSES, precision="fp32"),
        max_pixels=4_000_000,
        max_body_bytes=4 * 2**20,
        timeout_ms=120_000,  # no test of it fails because the machine is busy
    ) as live:
        yield live


@pytest.fixture
def faulty() -> FaultyDetector:
    return FaultyDetector()


@pytest.fixture
def serve_faulty(faulty: FaultyDetector) -> Callable[..., contextlib.AbstractContextManager[Live]]:
    """Serve the faulty detector with settings: ``with serve_faulty(max_queue=2) as live:``"""

    @contextlib.contextmanager
    def serve(**settings: object) -> Iterator[Live]:
        with serving(lambda _: faulty, **settings) as live:
            try:
                yield live
            finally:
                faulty.gate.set()  # or a failed test would never end

    return serve


@pytest.fixture(scope="session")
def encoded() -> Callable[..., bytes]:
    """Encode an image of one colour: ``encoded((width, height), colour, format="PNG", mode="RGB", **save_options)``."""

    def make(
        size: tuple[int, int] = (48, 32),
        colour: object = (200, 30, 30),
        format: str = "PNG",
        mode: str = "RGB",
        **save: object,
    ) -> bytes:
        file = io.BytesIO()
        Image.new(mode, size, colour).save(file, format, **save)  # type: ignore[arg-type]
        return file.getvalue()

    return make


@pytest.fixture
def small(encoded: Callable[..., bytes]) -> bytes:
    """Return an image for the faulty detector's smaller canvas."""
    return encoded((40, 30))


@pytest.fixture
def large(encoded: Callable[..., bytes]) -> bytes:
    """Return an image for the faulty detector's larger canvas."""
    return encoded((120, 30))


@pytest.fixture
def clients() -> Iterator[ThreadPoolExecutor]:
    """Return a pool of threads, each a client that sends one request at a time."""
    with ThreadPoolExecutor(40) as pool:
        yield pool


@pytest.fixture
def next_request_is_served(service: Live, encoded: Callable[..., bytes]) -> Iterator[None]:
    """Check after the test that the service still works."""
    yield
    response = service.detect(encoded((50, 40)))
    assert response.status_code == 200, "the service has not recovered"


@pytest.fixture(scope="session")
def cat_jpeg(chelsea: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(chelsea).save(file, "JPEG", quality=90)
    return file.getvalue()
