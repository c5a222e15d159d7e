"""How many pictures a batch may have, as far as the device's memory has shown."""

from __future__ import annotations


class BatchBound:
    """The most pictures in a batch: ``most``, less for a while after the device ran out of memory."""

    PROBE_AFTER = 32  # batches at the bound that must go well before a larger one is tried

    def __init__(self, most: int) -> None:
        self._most = most
        self._good = 0
        self.size = most

    def ran_out(self, pictures: int) -> None:
        """A batch of so many did not fit."""
        self.size = max(1, min(self.size, pictures // 2))
        self._good = 0

    def went_well(self, pictures: int) -> None:
        """A batch of so many fitted; enough full ones, and twice as many may go."""
        if self.size == self._most or pictures < self.size:
            return
        self._good += 1
        if self._good >= self.PROBE_AFTER:
            self.size = min(self._most, self.size * 2)
            self._good = 0
