"""A device that fails: on one image, for lack of memory, for good, or by hanging."""

import threading

import pytest

from tests.service.conftest import FaultyDetector
from tests.service.exchange import hold, queued, send, wait_for, waiting


def test_only_the_image_that_fails_gets_500(serve_faulty, faulty, clients, encoded, small):
    poison = encoded((40, 30), FaultyDetector.POISON)
    with serve_faulty() as live:
        hold(clients, live, faulty, small)
        pending = [send(clients, live, poison if i == 2 else small) for i in range(5)]
        wait_for(lambda: queued(live) == 5)
        faulty.gate.set()
        responses = [response.result() for response in pending]
        assert [response.status_code for response in responses] == [200, 200, 500, 200, 200]
        assert responses[2].json()["code"] == "image_failed"
        assert "poison" not in responses[2].text
        assert live.metric("frcnn_batch_failures_total", kind="error") >= 2
        assert live.client.get("/readyz").status_code == 200


def test_an_image_too_large_for_the_memory_fails_alone_with_out_of_memory(
    serve_faulty, faulty, clients, encoded, small, caplog
):
    faulty.poison_message = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB."
    poison = encoded((40, 30), FaultyDetector.POISON)
    with serve_faulty() as live:
        hold(clients, live, faulty, small)
        pending = [send(clients, live, poison if i == 1 else small) for i in range(4)]
        wait_for(lambda: queued(live) == 4)
        faulty.gate.set()
        responses = [response.result() for response in pending]
        assert [response.status_code for response in responses] == [200, 500, 200, 200]
        problem = responses[1].json()
        assert problem["code"] == "out_of_memory"
        assert "Send a smaller image" in problem["detail"]
        assert "GiB" not in responses[1].text
        assert live.client.get("/readyz").status_code == 200
    records = [record for record in caplog.records if record.message == "a batch ran out of memory"]
    assert "nvidia-smi" in records[-1].advice
    assert "FRCNN_MAX_BATCH_PIXELS" in records[-1].advice
    assert not any(record.exc_info for record in records)


def test_an_image_whose_values_are_not_finite_fails_alone_without_a_second_attempt(
    serve_faulty, faulty, clients, encoded, small
):
    faulty.poison_overflows = True
    overflowing = encoded((40, 30), FaultyDetector.POISON)
    with serve_faulty() as live:
        hold(clients, live, faulty, small)
        pending = [send(clients, live, overflowing if i == 1 else small) for i in range(4)]
        wait_for(lambda: queued(live) == 4)
        calls = len(faulty.batches)
        faulty.gate.set()
        responses = [response.result() for response in pending]
        assert [response.status_code for response in responses] == [200, 500, 200, 200]
        assert responses[1].json()["code"] == "not_finite"
        assert "FRCNN_PRECISION=bf16 or fp32" in responses[1].json()["detail"]
        # No self-test follows: the other images' results show that the detector works.
        assert [len(batch) for batch in faulty.batches[calls:]] == [4]
        assert live.metric("frcnn_batch_failures_total", kind="not_finite") == 1
        assert live.client.get("/readyz").status_code == 200


def test_a_single_poisonous_image_leaves_the_service_ready(serve_faulty, encoded, small):
    with serve_faulty() as live:
        assert live.detect(encoded((40, 30), FaultyDetector.POISON)).status_code == 500
        assert live.client.get("/readyz").status_code == 200
        assert live.detect(small).status_code == 200


def test_out_of_memory_splits_the_batch_and_makes_the_next_ones_smaller(serve_faulty, faulty, clients, small):
    faulty.memory_for = 2
    with serve_faulty(max_batch=8) as live:
        for _ in range(2):
            hold(clients, live, faulty, small)
            pending = [send(clients, live, small) for _ in range(8)]
            wait_for(lambda: queued(live) == 8)
            faulty.batches.clear()
            faulty.gate.set()
            assert [response.result().status_code for response in pending] == [200] * 8
            wait_for(lambda: waiting(live) == 0)
        assert [len(batch) for batch in faulty.batches] == [2, 2, 2, 2]
        assert live.metric("frcnn_batch_failures_total", kind="memory") >= 1


def test_a_broken_device_ends_readiness_and_waiting_images_get_503(serve_faulty, faulty, clients, small, large):
    with serve_faulty() as live:
        died = threading.Event()
        live.app.state.pipeline.batcher.on_failure = died.set
        running = hold(clients, live, faulty, small)
        waiting_response = send(clients, live, large)
        wait_for(lambda: queued(live) == 1)
        faulty.broken = True
        faulty.gate.set()
        assert running.result().status_code == 500
        assert waiting_response.result().status_code == 503
        assert died.wait(5)
        assert live.client.get("/readyz").status_code == 503
        assert live.client.get("/livez").status_code == 200
        assert live.detect(small).status_code == 503
        assert live.metric("frcnn_ready") == 0


def test_a_call_that_hangs_is_given_up_and_waiting_images_get_503(serve_faulty, faulty, clients, encoded, small):
    with serve_faulty(watchdog_seconds=0.3) as live:
        died = threading.Event()
        live.app.state.pipeline.batcher.on_failure = died.set
        hanging = hold(clients, live, faulty, small)
        waiting_response = send(clients, live, encoded((120, 30)))
        assert [hanging.result().status_code, waiting_response.result().status_code] == [503, 503]
        assert died.wait(5)
        assert live.client.get("/readyz").status_code == 503
        assert live.client.get("/livez").status_code == 200
        assert live.metric("frcnn_ready") == 0
        faulty.gate.set()  # the call returns, too late
        assert live.detect(small).status_code == 503


@pytest.mark.parametrize("death", [SystemExit, KeyboardInterrupt])
def test_the_death_of_the_workers_thread_is_noticed(serve_faulty, faulty, clients, monkeypatch, small, death):
    with serve_faulty() as live:
        died = threading.Event()
        live.app.state.pipeline.batcher.on_failure = died.set
        monkeypatch.setattr(faulty, "detect", lambda *_: (_ for _ in ()).throw(death()))
        assert live.detect(small).status_code == 503
        assert died.wait(5)
        assert live.client.get("/readyz").status_code == 503


def test_too_few_results_are_a_failure_of_the_batch(serve_faulty, faulty, monkeypatch, small):
    with serve_faulty() as live:
        detect = faulty.detect
        monkeypatch.setattr(faulty, "detect", lambda images, options: detect(images, options)[1:])
        assert live.detect(small).status_code == 500  # and its self-test fails too
        wait_for(lambda: live.client.get("/readyz").status_code == 503)
