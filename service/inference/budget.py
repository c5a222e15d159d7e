"""Memory for request bodies: what all of them together may hold while they arrive and are worked on."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from service.errors import QueueFull


class Budget:
    """Counts bytes of bodies in flight. A request's picture takes its place in the queue only once its body is here,
    so without this, bodies that are still arriving would be bounded by nothing but the number of connections.
    """

    def __init__(self, limit: int, retry_after: Callable[[], int]) -> None:
        self._limit = limit
        self._retry_after = retry_after
        self.held = 0

    @contextlib.contextmanager
    def tab(self) -> Iterator[Callable[[int], None]]:
        """``take(count)`` notes that so many more bytes have come; all are given back at the end.

        ``take`` raises ``QueueFull`` over the limit, except for a body that is the only one.
        """
        mine = 0

        def take(count: int) -> None:
            nonlocal mine
            if self.held + count > self._limit and self.held > mine:
                raise QueueFull(
                    "The bodies of other requests fill the memory set aside for them; "
                    "try again after the time in Retry-After.",
                    retry_after=self._retry_after(),
                )
            mine += count
            self.held += count

        try:
            yield take
        finally:
            self.held -= mine
