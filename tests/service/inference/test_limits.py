"""Throughput, batch size and bytes of bodies."""

import pytest

from service.errors import QueueFull
from service.inference.limits import BatchSizeLimit, Budget, Throughput


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
