"""Throughput, batch size, bytes of bodies and their number."""

import asyncio

import pytest

from service.errors import QueueFull, SlowBody
from service.inference.limits import ArrivingBodies, BatchSizeLimit, Budget, Throughput


def test_retry_after_is_measured():
    throughput = Throughput()
    assert throughput.retry_after(100) == 1
    record_batches(throughput, 1.0, images=2)
    assert throughput.retry_after(1) == 1
    assert throughput.retry_after(21) == 11
    assert throughput.retry_after(10_000) == 60


def record_batches(throughput: Throughput, *seconds: float, images: int = 1) -> None:
    for value in seconds:
        throughput.batch_started()
        throughput.batch_finished(images, value)


def test_one_slow_batch_does_not_change_the_throughput():
    throughput = Throughput()
    record_batches(throughput, 0.1, 0.1, 0.1, 30.0)
    assert throughput.seconds(10) == pytest.approx(1.0)


def test_slow_batches_are_forgotten_after_three_fast_ones():
    throughput = Throughput()
    record_batches(throughput, *[5.0] * 100)
    assert throughput.seconds(1) == 5.0
    record_batches(throughput, 0.1, 0.1, 0.1)
    assert throughput.seconds(1) == pytest.approx(0.1)


def test_an_old_throughput_is_forgotten():
    now = 0.0
    throughput = Throughput(lambda: now)
    record_batches(throughput, 5.0, 5.0, 5.0)
    now = Throughput.FORGET_AFTER / 2
    assert throughput.seconds(1) == 5.0
    now += Throughput.FORGET_AFTER
    assert throughput.seconds(1) == 0.0
    throughput.batch_started()
    assert throughput.seconds(1) == 0.0  # while the first batch runs too
    throughput.batch_finished(1, 0.1)
    assert throughput.seconds(1) == pytest.approx(0.1)  # and the old ones do not come back


def test_the_throughput_is_kept_during_a_long_batch():
    now = 0.0
    throughput = Throughput(lambda: now)
    record_batches(throughput, 5.0)
    throughput.batch_started()
    now = 100.0
    assert throughput.seconds(1) == 5.0


def test_the_batch_size_limit_grows_again_after_a_while():
    limit = BatchSizeLimit(8)
    limit.ran_out_of_memory(8)
    assert limit.size == 4
    for _ in range(BatchSizeLimit.PROBE_AFTER - 1):
        limit.succeeded(4)
    limit.succeeded(1)  # a batch that was not full proves nothing
    assert limit.size == 4
    limit.succeeded(4)
    assert limit.size == 8


def test_the_throughput_is_kept_while_any_device_is_busy():
    now = [0.0]
    throughput = Throughput(lambda: now[0])
    throughput.batch_started()
    throughput.batch_started()
    throughput.batch_finished(2, 1.0)
    now[0] = 60.0  # the other device's batch takes long
    assert throughput.seconds(4) == 2.0
    throughput.batch_finished(1, 60.0)
    now[0] = 120.0
    assert throughput.seconds(4) == 0.0


def test_a_single_body_may_be_over_the_limit_of_all():
    budget = Budget(100, lambda: 1)
    with budget.reserve() as take:
        take(60)
        take(60)
        with budget.reserve() as reserve_second, pytest.raises(QueueFull):
            reserve_second(1)
    assert budget.reserved == 0


async def test_at_the_limit_of_arriving_bodies_a_new_one_replaces_the_slowest(monkeypatch):
    bodies = ArrivingBodies(2, lambda: 1)
    with bodies.track() as slow, bodies.track() as second:
        reading = asyncio.create_task(read_forever(slow))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull), bodies.track():
            pass  # the slowest has come just now
        monkeypatch.setattr(ArrivingBodies, "GRACE", 0.0)
        with bodies.track():
            with pytest.raises(SlowBody, match="faster"):
                await reading
            assert len(bodies) == 2
        with bodies.track(), bodies.track(), pytest.raises(SlowBody):  # given up before its reading began
            await read_forever(second)
    assert len(bodies) == 0


async def test_a_body_that_has_been_read_counts_no_longer():
    bodies = ArrivingBodies(1, lambda: 1)
    with bodies.track() as first:
        async with first.read():
            pass
        with bodies.track():
            assert len(bodies) == 1


async def read_forever(body) -> None:
    async with body.read():
        await asyncio.Event().wait()
