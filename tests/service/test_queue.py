"""The queue: batches, order, bounds, deadlines, clients that leave, and a device that fails."""

import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from service.inference.batch_bound import BatchBound
from service.inference.pace import Pace
from tests.service.conftest import FaultyDetector


@pytest.fixture
def clients():
    with ThreadPoolExecutor(40) as pool:
        yield pool


def send(clients, live, body: bytes, **headers: str) -> "Future[httpx.Response]":
    """Send a picture from a client of its own, without waiting."""
    return clients.submit(httpx.post, f"{live.url}/detect", content=body, headers=headers, timeout=30)


def wait_for(condition, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came to pass"
        time.sleep(0.005)


def waiting(live) -> int:
    return live.app.state.pipeline.batcher.waiting


def hold(clients, live, faulty, body: bytes) -> "Future[httpx.Response]":
    """Keep the device busy with one picture until ``faulty.gate`` is set."""
    calls = len(faulty.batches)
    faulty.gate.clear()
    first = send(clients, live, body)
    wait_for(lambda: len(faulty.batches) > calls)
    return first


def queued(live) -> int:
    return sum(len(lane) for lane in live.app.state.pipeline.batcher._lanes.values())


@pytest.fixture
def small(encoded):
    return encoded((40, 30))


@pytest.fixture
def large(encoded):
    return encoded((120, 30))


def test_a_picture_never_waits_while_the_device_is_idle(serve_faulty, faulty, small):
    with serve_faulty() as live:
        timings = live.detect(small).json()["timings_ms"]
        assert timings["queue"] < 20
        assert live.metric("frcnn_batch_size_sum") == 1


def test_what_comes_in_while_the_device_is_busy_goes_as_one_batch(serve_faulty, faulty, clients, encoded, small):
    with serve_faulty(max_batch=4) as live:
        first = hold(clients, live, faulty, small)
        others = [send(clients, live, encoded((41 + i, 30))) for i in range(6)]
        wait_for(lambda: queued(live) == 6)
        faulty.gate.set()
        assert first.result().json()["batch_size"] == 1
        answers = [other.result().json() for other in others]
        # Each answer is its own picture's, whatever the batch.
        assert [a["image"]["width"] for a in answers] == [41 + i for i in range(6)]
        assert [a["boxes"][0][2] for a in answers] == [41.0 + i for i in range(6)]
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
        ahead = [batch for batch in faulty.batches if batch == [(30, 120)]]
        assert len(ahead) == 1
        assert all(answer.result().status_code == 200 for answer in flood)


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


def test_a_full_queue_is_429_with_the_time_to_come_back(serve_faulty, faulty, clients, small):
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
        assert [answer.result().status_code for answer in accepted] == [200, 200, 200]
        assert live.detect(small).status_code == 200
        assert live.metric("frcnn_rejected_total", reason="queue_full") == 1


def test_the_queue_is_bounded_by_pixels_too_and_an_empty_one_takes_any_picture(serve_faulty, faulty, clients, encoded):
    huge = encoded((400, 300))
    with serve_faulty(max_queue_pixels=130_000) as live:
        first = hold(clients, live, faulty, huge)
        assert live.detect(huge).status_code == 429
        faulty.gate.set()
        assert first.result().status_code == 200
        assert live.detect(huge).status_code == 200


def test_the_time_to_come_back_is_measured():
    pace = Pace()
    assert pace.seconds_for(100) == 1
    took(pace, 1.0, pictures=2)
    assert pace.seconds_for(1) == 1
    assert pace.seconds_for(21) == 11
    assert pace.seconds_for(10_000) == 60


def took(pace: Pace, *seconds: float, pictures: int = 1) -> None:
    for each in seconds:
        pace.begins()
        pace.ends(pictures, each)


def test_one_slow_batch_does_not_change_the_pace():
    pace = Pace()
    took(pace, 0.1, 0.1, 0.1, 30.0)
    assert pace.seconds(10) == pytest.approx(1.0)


def test_a_slow_spell_is_forgotten_after_three_batches_however_long_it_was():
    pace = Pace()
    took(pace, *[5.0] * 100)
    assert pace.seconds(1) == 5.0
    took(pace, 0.1, 0.1, 0.1)
    assert pace.seconds(1) == pytest.approx(0.1)


def test_the_pace_of_long_ago_turns_nobody_away():
    now = 0.0
    pace = Pace(lambda: now)
    took(pace, 5.0, 5.0, 5.0)
    now = Pace.FORGET_AFTER / 2
    assert pace.seconds(1) == 5.0
    now += Pace.FORGET_AFTER
    assert pace.seconds(1) == 0.0
    pace.begins()
    assert pace.seconds(1) == 0.0  # while the first batch runs too
    pace.ends(1, 0.1)
    assert pace.seconds(1) == pytest.approx(0.1)  # and the old ones do not come back


def test_a_long_batch_is_no_idleness():
    now = 0.0
    pace = Pace(lambda: now)
    took(pace, 5.0)
    pace.begins()
    now = 100.0
    assert pace.seconds(1) == 5.0


def test_after_a_slow_spell_impatient_clients_are_served_again_at_once(serve_faulty, faulty, clients, small):
    with serve_faulty() as live:
        faulty.delay = 0.5
        for _ in range(Pace.BATCHES):
            assert live.detect(small).status_code == 200
        faulty.delay = 0.0
        first = hold(clients, live, faulty, small)
        impatient = {"X-Request-Timeout-Ms": "900"}
        assert live.detect(small, headers=impatient).status_code == 429  # two at half a second each
        faulty.gate.set()
        assert first.result().status_code == 200
        for _ in range(3):  # the queue is empty: anybody is let in, and shows how fast it is now
            assert live.detect(small, headers={"X-Request-Timeout-Ms": "20000"}).status_code == 200
        first = hold(clients, live, faulty, small)
        waits = send(clients, live, small, **{"X-Request-Timeout-Ms": "20000"})
        wait_for(lambda: queued(live) == 1)
        assert live.app.state.pipeline.batcher._pace.seconds(1) < 0.4
        faulty.gate.set()
        assert [first.result().status_code, waits.result().status_code] == [200, 200]


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


def test_the_server_has_a_deadline_for_who_names_none(serve_faulty, faulty, clients, small):
    with serve_faulty(timeout_ms=100) as live:
        assert hold(clients, live, faulty, small).result().status_code == 504
        faulty.gate.set()


def test_a_client_that_has_gone_is_dropped_before_the_device_sees_its_picture(
    serve_faulty, faulty, clients, small, large
):
    with serve_faulty() as live:
        first = hold(clients, live, faulty, small)
        host, port = live.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: {len(large)}\r\n\r\n".encode()
            connection.sendall(head + large)
            wait_for(lambda: queued(live) == 1)
        wait_for(lambda: queued(live) == 0)
        faulty.gate.set()
        assert first.result().status_code == 200
        assert [(30, 120)] not in faulty.batches
        assert live.metric("frcnn_requests_total", route="/detect", status="499") == 1
        assert waiting(live) == 0


def test_only_the_culprit_of_a_failed_batch_gets_500(serve_faulty, faulty, clients, encoded, small):
    poison = encoded((40, 30), FaultyDetector.POISON)
    with serve_faulty() as live:
        hold(clients, live, faulty, small)
        sent = [send(clients, live, poison if i == 2 else small) for i in range(5)]
        wait_for(lambda: queued(live) == 5)
        faulty.gate.set()
        answers = [answer.result() for answer in sent]
        assert [a.status_code for a in answers] == [200, 200, 500, 200, 200]
        assert answers[2].json()["code"] == "picture_failed"
        assert "poison" not in answers[2].text
        assert live.metric("frcnn_batch_failures_total", kind="error") >= 2
        assert live.client.get("/readyz").status_code == 200


def test_an_image_that_does_not_fit_into_memory_alone_is_told_so(serve_faulty, faulty, clients, encoded, small, caplog):
    faulty.poison_says = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1.00 GiB."
    poison = encoded((40, 30), FaultyDetector.POISON)
    with serve_faulty() as live:
        hold(clients, live, faulty, small)
        sent = [send(clients, live, poison if i == 1 else small) for i in range(4)]
        wait_for(lambda: queued(live) == 4)
        faulty.gate.set()
        answers = [answer.result() for answer in sent]
        assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
        problem = answers[1].json()
        assert problem["code"] == "out_of_memory"
        assert "Send a smaller image" in problem["detail"]
        assert "GiB" not in answers[1].text
        assert live.client.get("/readyz").status_code == 200
    said = [record for record in caplog.records if record.message == "a batch ran out of memory"]
    assert "nvidia-smi" in said[-1].advice
    assert "FRCNN_MAX_BATCH_PIXELS" in said[-1].advice
    assert not any(record.exc_info for record in said)


def test_an_image_whose_values_are_not_finite_fails_alone_and_nothing_is_computed_again(
    serve_faulty, faulty, clients, encoded, small
):
    faulty.poison_overflows = True
    overflowing = encoded((40, 30), FaultyDetector.POISON)
    with serve_faulty() as live:
        hold(clients, live, faulty, small)
        sent = [send(clients, live, overflowing if i == 1 else small) for i in range(4)]
        wait_for(lambda: queued(live) == 4)
        calls = len(faulty.batches)
        faulty.gate.set()
        answers = [answer.result() for answer in sent]
        assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
        assert answers[1].json()["code"] == "not_finite"
        assert "FRCNN_PRECISION=fp32" in answers[1].json()["detail"]
        assert [len(batch) for batch in faulty.batches[calls:]] == [4]  # the others' answers clear the detector
        assert live.metric("frcnn_batch_failures_total", kind="not_finite") == 1
        assert live.client.get("/readyz").status_code == 200


def test_a_single_poisonous_picture_leaves_the_service_ready(serve_faulty, encoded, small):
    with serve_faulty() as live:
        assert live.detect(encoded((40, 30), FaultyDetector.POISON)).status_code == 500
        assert live.client.get("/readyz").status_code == 200
        assert live.detect(small).status_code == 200


def test_out_of_memory_splits_the_batch_and_makes_the_next_ones_smaller(serve_faulty, faulty, clients, small):
    faulty.memory_for = 2
    with serve_faulty(max_batch=8) as live:
        for _ in range(2):
            hold(clients, live, faulty, small)
            sent = [send(clients, live, small) for _ in range(8)]
            wait_for(lambda: queued(live) == 8)
            faulty.batches.clear()
            faulty.gate.set()
            assert [answer.result().status_code for answer in sent] == [200] * 8
            wait_for(lambda: waiting(live) == 0)
        assert [len(batch) for batch in faulty.batches] == [2, 2, 2, 2]
        assert live.metric("frcnn_batch_failures_total", kind="memory") >= 1


def test_the_batch_bound_grows_again_after_a_while():
    bound = BatchBound(8)
    bound.ran_out(8)
    assert bound.size == 4
    for _ in range(BatchBound.PROBE_AFTER - 1):
        bound.went_well(4)
    bound.went_well(1)  # a batch that was not full proves nothing
    assert bound.size == 4
    bound.went_well(4)
    assert bound.size == 8


def test_a_device_that_is_broken_for_good_turns_readiness_off_and_answers_what_waits(
    serve_faulty, faulty, clients, small, large
):
    with serve_faulty() as live:
        died = threading.Event()
        live.app.state.pipeline.batcher.on_death = died.set
        running = hold(clients, live, faulty, small)
        behind = send(clients, live, large)
        wait_for(lambda: queued(live) == 1)
        faulty.broken = True
        faulty.gate.set()
        assert running.result().status_code == 500
        assert behind.result().status_code == 503
        assert died.wait(5)
        assert live.client.get("/readyz").status_code == 503
        assert live.client.get("/livez").status_code == 200
        assert live.detect(small).status_code == 503
        assert live.metric("frcnn_ready") == 0


def test_a_batch_request_is_not_refused_for_having_more_pictures_than_the_queue(serve_faulty, small):
    with serve_faulty(max_queue=4) as live:
        results = live.client.post("/detect/batch", files=[("image", small)] * 20).json()["results"]
        assert len(results) == 20
        assert all("boxes" in result for result in results)
