"""Images that wait for a device, grouped by the canvas they are padded to: a batch has one canvas."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from model.structures import Detections, DetectOptions, ImageArray

Canvas = tuple[int, int]


@dataclass(eq=False)
class Task:
    """One decoded image in the queue or on a device, and the future of its result.

    canvas: (height, width) that the image is padded to. deadline, arrived: ``time.monotonic`` seconds.
    started, finished: the same, of the attempt that decided the result; the worker sets them.
    """

    image: ImageArray
    options: DetectOptions
    canvas: Canvas
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    finished: float = 0.0
    result: asyncio.Future[Detections] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def image_pixels(self) -> int:
        """Return the pixels of the image as decoded."""
        return int(self.image.shape[0] * self.image.shape[1])

    @property
    def pixels(self) -> int:
        """Return the pixels that count against the queue's limit: as decoded or as padded, whichever is more."""
        return max(self.canvas[0] * self.canvas[1], self.image_pixels)


class ImageQueue:
    """Waiting tasks. The group whose oldest task has waited longest is served next, so a rare canvas never starves."""

    def __init__(self) -> None:
        self._groups: dict[Canvas, deque[Task]] = {}

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def add(self, task: Task) -> None:
        """Append ``task`` to the group of its canvas."""
        self._groups.setdefault(task.canvas, deque()).append(task)

    def discard(self, task: Task) -> None:
        """Remove ``task`` if it still waits."""
        group = self._groups.get(task.canvas)
        if group is not None and task in group:
            group.remove(task)
            self._delete_if_empty(task.canvas)

    def next_batch(self, max_images: int, max_pixels: int) -> list[Task]:
        """Take the next batch: at most ``max_images`` and ``max_pixels`` when padded, but at least one image.

        Return an empty list where nothing waits. Tasks whose deadline has passed are dropped first.
        """
        self._drop_expired()
        if not self._groups:
            return []
        canvas, group = min(self._groups.items(), key=lambda item: item[1][0].arrived)
        size = min(max_images, max(1, max_pixels // (canvas[0] * canvas[1])), len(group))
        batch = [group.popleft() for _ in range(size)]
        self._delete_if_empty(canvas)
        return batch

    def take_all(self) -> list[Task]:
        """Empty the queue, and return the tasks that were in it."""
        tasks = [task for group in self._groups.values() for task in group]
        self._groups.clear()
        return tasks

    def _drop_expired(self) -> None:
        """Remove tasks without a waiting client. A deadline's timer may be due and not have run yet."""
        now = time.monotonic()
        for canvas, group in list(self._groups.items()):
            for task in [task for task in group if task.deadline <= now or task.result.done()]:
                group.remove(task)
            self._delete_if_empty(canvas)

    def _delete_if_empty(self, canvas: Canvas) -> None:
        if not self._groups[canvas]:
            del self._groups[canvas]
