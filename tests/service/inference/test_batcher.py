"""Batches, order, bounds and deadlines, as clients see them."""

import time

import httpx

from service.inference.limits import Throughput
from tests.service.exchange import hold, queued, send, wait_for, waiting


def test_an_image_never_waits_while_the_device_is_idle(serve_faulty, faulty, small):
    with serve_faulty() as live:
        timings = live.detect(small).json()["timings_ms"]
        assert timings["queue"] < 20
        assert live.metric("frcnn_batch_size_sum") == 1


def test_images_that_arrive_while_the_device_is_busy_form_one_batch(serve_faulty, faulty, clients, encoded, small):
    with serve_faulty(max_batch=4) as live:
        first = hold(clients, live, faulty, small)
        responses = [send(clients, live, encoded((41 + i, 30))) for i in range(6)]
        wait_for(lambda: queued(live) == 6)
        faulty.gate.set()
        assert first.result().json()["batch_size"] == 1
        bodies = [response.result().json() for response in responses]
        # Each result belongs to its own image.
        assert [body["image"]["width"] for body in bodies] == [41 + i for i in range(6)]
        assert [body["boxes"][0][2] for body in bodies] == [41.0 + i for i in range(6)]
        assert [len(batch) for batch in faulty.batches[-3:]] == [1, 4, 2]


def test_a_batch_holds_one_canvas_and_the_longest_waiting_canvas_goes_first(
    serve_faulty, faulty, clients, small, large
):
    with serve_faulty(max_batch=8) as live:
        hold(clients, live, faulty, small)
        for body, count in ((large, 1), (small, 2), (small, 3), (small, 4), (large, 5)):
            send(clients, live, body)
            wait_for(lambda count=count: queued(live) == count)
        faulty.gate.set()
        wait_for(lambda: waiting(live) == 0)
        assert faulty.batches[-2:] == [[(30, 120)] * 2, [(30, 40)] * 3]


def test_a_rare_canvas_does_not_starve_under_a_flood_of_another(serve_faulty, faulty, clients, small, large):
    faulty.delay = 0.02
    with serve_faulty(max_batch=2, max_queue=100) as live:
        flood = [send(clients, live, small) for _ in range(20)]
        wait_for(lambda: waiting(live) >= 6)
        started = time.monotonic()
        rare = send(clients, live, large).result().json()
        assert rare["image"]["width"] == 120
        assert time.monotonic() - started < 5
        assert faulty.batches.count([(30, 120)]) == 1
        assert all(response.result().status_code == 200 for response in flood)


def test_a_batch_is_bounded_by_its_padded_pixels(serve_faulty, faulty, clients, small, large):
    with serve_faulty(max_batch=8, max_batch_pixels=2 * 128 * 128) as live:
        hold(clients, live, faulty, small)
        for _ in range(5):
            send(clients, live, large)
        wait_for(lambda: queued(live) == 5)
        faulty.gate.set()
        wait_for(lambda: waiting(live) == 0)
        assert [len(batch) for batch in faulty.batches[-3:]] == [2, 2, 1]


def test_options_differ_within_one_batch(serve_faulty, faulty, clients, small):
    with serve_faulty() as live:
        hold(clients, live, faulty, small)
        for threshold in (0.1, 0.2):
            clients.submit(httpx.post, f"{live.url}/detect?score_threshold={threshold}", content=small, timeout=30)
        wait_for(lambda: queued(live) == 2)
        faulty.gate.set()
        wait_for(lambda: waiting(live) == 0)
        assert {option.score_threshold for option in faulty.options[-1]} == {0.1, 0.2}


def test_a_full_queue_is_429_with_retry_after(serve_faulty, faulty, clients, small):
    with serve_faulty(max_queue=3) as live:
        accepted = [hold(clients, live, faulty, small)]
        accepted += [send(clients, live, small) for _ in range(2)]
        wait_for(lambda: waiting(live) == 3)
        refusal = live.detect(small)
        assert refusal.status_code == 429
        assert refusal.json()["code"] == "queue_full"
        assert 1 <= int(refusal.headers["retry-after"]) <= 60
        assert live.client.get("/readyz").json() == {"status": "busy"}
        faulty.gate.set()
        assert [response.result().status_code for response in accepted] == [200, 200, 200]
        assert live.detect(small).status_code == 200
        assert live.metric("frcnn_rejected_total", reason="queue_full") == 1


def test_the_queue_is_bounded_by_pixels_and_an_empty_one_accepts_any_image(serve_faulty, faulty, clients, encoded):
    huge = encoded((400, 300))
    with serve_faulty(max_queue_pixels=130_000) as live:
        first = hold(clients, live, faulty, huge)
        assert live.detect(huge).status_code == 429
        faulty.gate.set()
        assert first.result().status_code == 200
        assert live.detect(huge).status_code == 200


def test_after_slow_batches_short_deadlines_are_accepted_again(serve_faulty, faulty, clients, small):
    with serve_faulty() as live:
        faulty.delay = 0.5
        for _ in range(Throughput.BATCHES):
            assert live.detect(small).status_code == 200
        faulty.delay = 0.0
        first = hold(clients, live, faulty, small)
        headers = {"X-Request-Timeout-Ms": "900"}
        assert live.detect(small, headers=headers).status_code == 429  # two at half a second each
        faulty.gate.set()
        assert first.result().status_code == 200
        for _ in range(3):  # an empty queue accepts any request, and its batch updates the estimate
            assert live.detect(small, headers={"X-Request-Timeout-Ms": "20000"}).status_code == 200
        first = hold(clients, live, faulty, small)
        second = send(clients, live, small, **{"X-Request-Timeout-Ms": "20000"})
        wait_for(lambda: queued(live) == 1)
        assert live.app.state.pipeline.batcher.throughput.seconds(1) < 0.4
        faulty.gate.set()
        assert [first.result().status_code, second.result().status_code] == [200, 200]


def test_a_deadline_that_passes_in_the_queue_is_504_at_once_and_the_work_is_dropped(
    serve_faulty, faulty, clients, small, large
):
    with serve_faulty() as live:
        first = hold(clients, live, faulty, small)
        started = time.monotonic()
        late = live.detect(large, headers={"X-Request-Timeout-Ms": "150"})
        assert late.status_code == 504
        assert late.json()["code"] == "deadline_passed"
        assert 0.1 < time.monotonic() - started < 2
        faulty.gate.set()
        assert first.result().status_code == 200
        assert live.detect(small).status_code == 200
        assert [(30, 120)] not in faulty.batches


def test_a_request_without_a_deadline_has_the_servers(serve_faulty, faulty, clients, small):
    with serve_faulty(timeout_ms=100) as live:
        assert hold(clients, live, faulty, small).result().status_code == 504
        faulty.gate.set()


def test_a_request_that_would_miss_its_deadline_is_429_at_once(
    serve_faulty,
    faulty,
    clients,
    small,
):
    with serve_faulty() as live:
        faulty.delay = 0.3
        assert live.detect(small).status_code == 200  # the throughput is known now
        first = hold(clients, live, faulty, small)
        refusal = live.detect(small, headers={"X-Request-Timeout-Ms": "200"})
        assert refusal.status_code == 429
        assert "deadline" in refusal.json()["detail"]
        second = send(clients, live, small)
        wait_for(lambda: queued(live) == 1)
        faulty.gate.set()
        assert [first.result().status_code, second.result().status_code] == [200, 200]
        assert live.detect(small, headers={"X-Request-Timeout-Ms": "900"}).status_code == 200
