"""How fast the devices answer: what a queue's length means in seconds."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable


class Pace:
    """How fast a device answers pictures while it is busy: the median of the last batches, however slow one was.

    So a spell in which the device was slow is forgotten after three batches at its usual speed, and any spell after
    a few seconds in which all are idle.
    """

    BATCHES = 5
    FORGET_AFTER = 5.0  # idle seconds

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seconds_each: deque[float] = deque(maxlen=self.BATCHES)
        self._under_way = 0
        self._idle_since: float | None = None

    def begins(self) -> None:
        """A batch goes to a device."""
        if self._forgotten():
            self._seconds_each.clear()
        self._under_way += 1
        self._idle_since = None

    def ends(self, pictures: int, seconds: float) -> None:
        """It is back."""
        self._seconds_each.append(seconds / pictures)
        self._under_way -= 1
        if not self._under_way:
            self._idle_since = self._clock()

    def seconds(self, pictures: int) -> float:
        """In which one device should answer so many pictures; 0 where nothing is known."""
        if not self._seconds_each or self._forgotten():
            return 0.0
        return pictures * statistics.median(self._seconds_each)

    def seconds_for(self, pictures: int) -> int:
        """The same for a header: whole seconds, 1 to 60."""
        return min(60, max(1, math.ceil(self.seconds(pictures))))

    def _forgotten(self) -> bool:
        return self._idle_since is not None and self._clock() - self._idle_since > self.FORGET_AFTER
