"""The pipeline with several devices, each with a worker, and one queue; release of memory."""

import asyncio
import contextlib
import contextvars
import dataclasses
import threading

import pytest
import torch

from service.app import create_app
from service.errors import StartError
from service.inference.threads import available_cores, image_process_count
from service.settings import load_settings
from tests.service.conftest import FaultyDetector, serving
from tests.service.exchange import queued, send, wait_for, waiting
from tests.service.image_processes import IMAGE_PROCESSES

DEVICES = ("cuda:0", "cuda:1")


@pytest.fixture
def pair():
    """Return two faulty detectors by device."""
    return {device: FaultyDetector() for device in DEVICES}


@pytest.fixture
def serve_pair(pair):
    @contextlib.contextmanager
    def serve(**settings):
        with serving(
            lambda device_settings: pair[device_settings.device], devices=lambda _: DEVICES, **settings
        ) as live:
            try:
                yield live
            finally:
                for detector in pair.values():
                    detector.gate.set()

    return serve


def hold_both(clients, live, pair, body):
    """Keep each device busy with one image until its gate is set."""
    responses = []
    for detector in pair.values():  # whichever device is idle gets it
        detector.gate.clear()
        calls = len(detector.batches)
        responses.append(send(clients, live, body))
        wait_for(lambda detector=detector, calls=calls: len(detector.batches) > calls)
    return responses


def test_each_device_has_a_detector_that_ran_the_self_test(serve_pair, pair):
    with serve_pair():
        assert all(detector.batches for detector in pair.values())


def test_no_image_waits_while_a_device_is_idle(serve_pair, pair, clients, small):
    with serve_pair() as live:
        first_responses = hold_both(clients, live, pair, small)
        assert queued(live) == 0
        for detector in pair.values():
            detector.gate.set()
        assert [response.result().status_code for response in first_responses] == [200, 200]


def test_waiting_images_go_to_the_first_idle_device(serve_pair, pair, clients, small):
    with serve_pair() as live:
        first_responses = hold_both(clients, live, pair, small)
        queued_responses = [send(clients, live, small) for _ in range(3)]
        wait_for(lambda: queued(live) == 3)
        pair["cuda:1"].gate.set()
        assert [response.result().status_code for response in (first_responses[1], *queued_responses)] == [200] * 4
        assert len(pair["cuda:1"].batches[-1]) == 3
        assert not first_responses[0].done()
        pair["cuda:0"].gate.set()
        assert first_responses[0].result().status_code == 200


def test_out_of_memory_limits_the_batches_of_that_device_alone(serve_pair, pair, clients, small):
    first, second = pair.values()
    first.memory_for = 1
    with serve_pair() as live:
        first_responses = hold_both(clients, live, pair, small)
        responses = [send(clients, live, small) for _ in range(4)]
        wait_for(lambda: queued(live) == 4)
        first.gate.set()
        assert [response.result().status_code for response in (first_responses[0], *responses)] == [200] * 5
        assert 4 in map(len, first.batches)  # it tried
        first.gate.clear()
        calls = len(first.batches)
        late_response = send(clients, live, small)
        wait_for(lambda: len(first.batches) > calls)
        responses = [send(clients, live, small) for _ in range(4)]
        wait_for(lambda: queued(live) == 4)
        second.gate.set()
        assert [response.result().status_code for response in (first_responses[1], *responses)] == [200] * 5
        assert len(second.batches[-1]) == 4
        first.gate.set()
        assert late_response.result().status_code == 200


def test_a_dead_worker_ends_the_service_after_the_others_batch(serve_pair, pair, clients, small):
    first, second = pair.values()
    with serve_pair() as live:
        deaths = []
        died = threading.Event()
        live.app.state.pipeline.batcher.on_failure = lambda: (deaths.append(1), died.set())
        first_responses = hold_both(clients, live, pair, small)
        queued_response = send(clients, live, small)
        wait_for(lambda: queued(live) == 1)
        calls = len(second.batches)
        first.broken = True
        first.gate.set()
        assert died.wait(10)
        assert queued_response.result().status_code == 503
        assert live.client.get("/readyz").status_code == 503
        assert live.metric("frcnn_ready") == 0
        assert live.detect(small).status_code == 503
        assert "self-test" in live.app.state.pipeline.failure_reason
        second.gate.set()
        assert first_responses[1].result().status_code == 200
        assert len(second.batches) == calls  # and nothing new begins
        wait_for(lambda: waiting(live) == 0)
        assert deaths == [1]


def test_a_device_that_cannot_be_loaded_keeps_the_service_from_starting(pair):
    def load(settings):
        if settings.device == "cuda:1":
            raise RuntimeError("no memory is left on it")
        return pair[settings.device]

    app = create_app(load_settings(), detector_factory=load, devices=lambda _: DEVICES, image_processes=IMAGE_PROCESSES)
    pipeline = app.state.pipeline
    with pytest.raises(RuntimeError, match="no memory is left on it"):
        asyncio.run(pipeline.open())
    assert pipeline.failure_reason


def test_an_image_process_that_cannot_be_started_keeps_the_service_from_starting(faulty):
    class NoProcesses:
        def take(self):
            raise StartError("there is no Pillow")

    app = create_app(load_settings(), detector_factory=lambda _: faulty, image_processes=NoProcesses())
    with pytest.raises(StartError, match="there is no Pillow"):
        asyncio.run(app.state.pipeline.open())
    assert app.state.pipeline.failure_reason


def test_the_number_of_image_processes_is_a_setting(serve_faulty):
    with serve_faulty(image_processes=3) as live:
        assert live.metric("frcnn_image_processes", state="idle") == 3
    with serve_faulty() as live:
        assert live.metric("frcnn_image_processes", state="idle") == image_process_count(available_cores(), "cpu")


def test_the_model_and_the_metrics_name_every_device(monkeypatch):
    class Named(FaultyDetector):
        def __init__(self, device):
            super().__init__()
            self.device = device

        @property
        def info(self):
            return dataclasses.replace(super().info, device=self.device)

    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7.0 + DEVICES.index(device))
    with serving(lambda settings: Named(settings.device), devices=lambda _: DEVICES) as live:
        assert live.client.get("/model").json()["device"] == "cuda:0, cuda:1"
        assert [live.metric("frcnn_device_memory_bytes", device=device) for device in DEVICES] == [7.0, 8.0]
        assert live.client.get("/metrics").text.count("frcnn_model_info{") == 2


def test_free_memory_is_released_while_the_pipeline_is_open(monkeypatch):
    # The services of other tests may run in this process too.
    in_this_test = contextvars.ContextVar("in_this_test", default=False)
    calls = []
    monkeypatch.setattr("service.inference.pipeline.RELEASE_SECONDS", 0.01)
    monkeypatch.setattr(
        "service.inference.pipeline.release_free_memory", lambda: calls.append(1) if in_this_test.get() else None
    )

    async def open_and_close():
        in_this_test.set(True)
        app = create_app(load_settings(), detector_factory=lambda _: FaultyDetector(), image_processes=IMAGE_PROCESSES)
        pipeline = app.state.pipeline
        await pipeline.open()
        while len(calls) < 3:
            await asyncio.sleep(0.01)
        await pipeline.close()
        count = len(calls)
        await asyncio.sleep(0.1)
        assert len(calls) == count

    asyncio.run(asyncio.wait_for(open_and_close(), 20))
