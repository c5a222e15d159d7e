"""A client that sends any bytes over a connection, at any pace, and reads the responses that come back."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Address = tuple[str, int]
Part = bytes | float  # bytes to send, or seconds to wait
_KEPT = 1 << 20  # bytes of a body that are kept
_STALLED = 60.0  # seconds without a byte that the server takes, after which the client stops sending


@dataclass
class Answer:
    """One response: its status, headers by lower-case name, and body (its first MiB)."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass
class Exchange:
    """What one connection sent and got. seconds: until it ended.

    interim: 1xx statuses. closed: seconds after the last part at which the server closed, None where it did not.
    malformed: what came that is no response, or "".
    """

    sent: int = 0
    answers: list[Answer] = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    malformed: str = ""
    seconds: float = 0.0
    closed: float | None = None


class AnswerReader:
    """Reads the responses of one connection from its bytes, as they come (RFC 9112). Each must name its length."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.interim: list[int] = []
        self.malformed = ""
        self._data = bytearray()
        self._rest = 0  # bytes of the current body that are still to come

    @property
    def complete(self) -> int:
        """Return how many responses are complete."""
        return len(self.answers) - (self._rest > 0)

    def feed(self, data: bytes) -> None:
        """Read the next bytes."""
        self._data += data
        while self._data and not self.malformed:
            if self._rest:
                self._read_body()
                continue
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                self.malformed = "a head of over 64 KiB" if len(self._data) > 65_536 else ""
                return
            self._read_head(bytes(self._data[:end]))
            del self._data[: end + 4]

    def _read_body(self) -> None:
        piece = bytes(self._data[: self._rest])
        if len(self.answers[-1].body) < _KEPT:
            self.answers[-1].body += piece
        del self._data[: self._rest]
        self._rest -= len(piece)

    def _read_head(self, head: bytes) -> None:
        first, *lines = head.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            self.malformed = f"no response: {first[:60]!r}"
        elif (status := int(rest[:3])) < 200:
            self.interim.append(status)
        else:
            headers = {
                name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
            }
            self._rest = int(headers.get("content-length", 0))
            self.answers.append(Answer(status, headers))


async def exchange(
    address: Address,
    parts: Sequence[Part],
    *,
    patience: float,
    answers: int | None = None,
    read: bool = True,
    leave: float | None = None,
    quiet: float | None = None,
) -> Exchange:
    """Send ``parts`` on a connection of its own, read what comes, and return it.

    Ends when the server has closed, ``patience`` seconds after the last part, or once ``answers`` responses have come
    (None: they may be any number), or nothing has come for ``quiet`` seconds since the last complete one. read: False
    for a client that never reads. leave: close so many seconds after the last part instead.
    """
    return await _Client(address, read).run(parts, patience, answers, leave, quiet)


class _Client:
    def __init__(self, address: Address, read: bool) -> None:
        self.address = address
        self.reads = read
        self.reader = AnswerReader()
        self.sent = 0
        self.received_at = 0.0
        self.closed_at: float | None = None
        self.socket = socket.socket()
        self.socket.setblocking(False)

    async def run(
        self, parts: Sequence[Part], patience: float, answers: int | None, leave: float | None, quiet: float | None
    ) -> Exchange:
        started = time.monotonic()
        with self.socket:
            try:
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(self.socket, self.address), patience)
            except (OSError, TimeoutError):
                return Exchange(malformed="no connection", seconds=time.monotonic() - started)
            watching = asyncio.create_task(self._read() if self.reads else self._wait_for_reset())
            try:
                await self._send(parts)
                last = time.monotonic()
                if leave is not None:
                    await asyncio.sleep(leave)
                while leave is None and self.closed_at is None and time.monotonic() - last < patience:
                    if answers is not None and self.reader.complete >= answers:
                        break
                    silence = time.monotonic() - max(last, self.received_at)
                    if quiet is not None and self.reader.complete and silence > quiet:
                        break
                    await asyncio.wait({watching}, timeout=0.01)
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
        return Exchange(
            self.sent,
            self.reader.answers,
            self.reader.interim,
            self.reader.malformed,
            time.monotonic() - started,
            None if self.closed_at is None else max(0.0, self.closed_at - last),
        )

    async def _send(self, parts: Sequence[Part]) -> None:
        for part in parts:
            if self.closed_at is not None:
                return
            if isinstance(part, bytes):
                await self._send_bytes(memoryview(part))
            else:
                await asyncio.sleep(part)

    async def _send_bytes(self, data: memoryview) -> None:
        stalled = time.monotonic()
        while data and self.closed_at is None and time.monotonic() - stalled < _STALLED:
            try:
                count = self.socket.send(data[: 1 << 18])
            except BlockingIOError:
                await asyncio.sleep(0.005)
                continue
            except OSError:  # the server has reset the connection; what it sent before is still being read
                await asyncio.sleep(0.05)
                self._close()
                return
            data = data[count:]
            self.sent += count
            stalled = time.monotonic()
            await asyncio.sleep(0)

    async def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := await asyncio.get_running_loop().sock_recv(self.socket, 1 << 18):
                self.reader.feed(data)
                self.received_at = time.monotonic()
        self._close()

    async def _wait_for_reset(self) -> None:
        """Wait until the server has closed or aborted the connection, without reading from it."""
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        while not poll.poll(0):
            await asyncio.sleep(0.05)
        self._close()

    def _close(self) -> None:
        if self.closed_at is None:
            self.closed_at = time.monotonic()
