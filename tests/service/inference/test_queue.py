"""The queue's order and bounds, without a service around it."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from model.structures import DetectOptions
from service.inference.queue import ImageQueue, Task

SMALL, LARGE = (64, 64), (128, 128)


@pytest.fixture(scope="module")
def make_task() -> Iterator[Callable[..., Task]]:
    """Make tasks on an event loop that does not run."""
    loop = asyncio.new_event_loop()

    def make(canvas: tuple[int, int] = SMALL, arrived: float = 0.0, deadline: float = math.inf) -> Task:
        image = np.zeros((30, 40, 3), np.uint8)
        return Task(image, DetectOptions(), canvas, deadline, arrived, result=loop.create_future())

    yield make
    loop.close()


def filled(*tasks: Task) -> ImageQueue:
    queue = ImageQueue()
    for task in tasks:
        queue.add(task)
    return queue


def test_the_canvas_whose_oldest_task_waited_longest_goes_first(make_task) -> None:
    first, second, third = make_task(LARGE, 1), make_task(SMALL, 2), make_task(LARGE, 3)
    queue = filled(first, second, third)
    assert queue.next_batch(8, 10**9) == [first, third]
    assert queue.next_batch(8, 10**9) == [second]
    assert queue.next_batch(8, 10**9) == []


@pytest.mark.parametrize(
    ("max_images", "max_pixels", "size"), [(2, 10**9, 2), (8, 3 * 64 * 64, 3), (8, 1, 1), (8, 10**9, 5)]
)
def test_a_batch_is_bounded_by_images_and_padded_pixels_but_never_empty(
    make_task, max_images, max_pixels, size
) -> None:
    queue = filled(*(make_task(SMALL, number) for number in range(5)))
    assert len(queue.next_batch(max_images, max_pixels)) == size
    assert len(queue) == 5 - size


def test_tasks_past_their_deadline_or_cancelled_do_not_reach_a_device(make_task) -> None:
    late, done, waiting = make_task(SMALL, deadline=time.monotonic() - 1), make_task(SMALL), make_task(SMALL)
    done.result.cancel()
    assert filled(late, done, waiting).next_batch(8, 10**9) == [waiting]


def test_a_discarded_task_is_gone_and_may_be_discarded_again(make_task) -> None:
    first, second = make_task(SMALL), make_task(LARGE)
    queue = filled(first, second)
    for _ in range(2):
        queue.discard(first)
    assert queue.take_all() == [second]
    assert len(queue) == 0


def test_a_task_counts_its_decoded_or_padded_pixels_whichever_is_more(make_task) -> None:
    assert make_task(SMALL).pixels == 64 * 64
    assert make_task((20, 20)).pixels == make_task((20, 20)).image_pixels == 30 * 40
