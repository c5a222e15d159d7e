"""Accept TLS connections: those whose handshake is not done are bounded too.

A server of asyncio or uvloop tells its protocol of a connection only after the handshake, so connections that never
begin one would be counted by nobody, and could use up the process's open files.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence


class TlsListener:
    """Listening sockets, with the interface of ``asyncio.Server`` that uvicorn uses.

    At ``max_handshakes`` the oldest handshake is given up for a new one.
    """

    HANDSHAKE_SECONDS = 10.0
    SHUTDOWN_SECONDS = 5.0  # for the client's part of the end of TLS
    RETRY_SECONDS = 1.0  # after a failed accept: no open files are left

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        context: ssl.SSLContext,
        protocol: Callable[[], asyncio.Protocol],
        max_handshakes: int,
    ) -> None:
        self.sockets = tuple(sockets)
        self._context, self._protocol, self._max_handshakes = context, protocol, max_handshakes
        self._loop = asyncio.get_running_loop()
        self._handshakes: dict[asyncio.Task[None], None] = {}  # in order of their begin
        for listener in self.sockets:
            listener.setblocking(False)
            self._start(listener)

    def close(self) -> None:
        """Accept nothing more, and give up what is in its handshake."""
        for listener in self.sockets:
            self._loop.remove_reader(listener)
            listener.close()
        for handshake in self._handshakes:
            self._loop.call_soon(handshake.cancel)  # a task that has not begun would not close its socket

    async def wait_closed(self) -> None:
        """Return once no handshake goes on."""
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _start(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        # Not more at once, so that other events have their turn, and a handshake begins before it is given up.
        for _ in range(min(100, self._max_handshakes)):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                self._loop.remove_reader(listener)
                self._loop.call_later(self.RETRY_SECONDS, self._start, listener)
                return
            if len(self._handshakes) >= self._max_handshakes:
                oldest = next(iter(self._handshakes))
                del self._handshakes[oldest]
                oldest.cancel()
            handshake = self._loop.create_task(self._connect(connection))
            self._handshakes[handshake] = None
            handshake.add_done_callback(lambda task: self._handshakes.pop(task, None))

    async def _connect(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError, TimeoutError):  # the client's failure, ssl.SSLError included
            await self._loop.connect_accepted_socket(
                self._protocol,
                connection,
                ssl=self._context,
                ssl_handshake_timeout=self.HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=self.SHUTDOWN_SECONDS,
            )


def listening_sockets(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Return a listening socket for each address of ``host``; raises ``OSError``."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    with contextlib.ExitStack() as opened:
        sockets = [
            opened.enter_context(socket.create_server(address[:2], family=family, backlog=backlog))
            for family, *_, address in dict.fromkeys(addresses)
        ]
        opened.pop_all()
    return sockets
