"""Exchange small messages with descriptors between two processes, and large data in files that only memory holds."""

from __future__ import annotations

import array
import fcntl
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

SLOT_BYTES = 3 * 2**20  # of the memory that two processes share: JPEGs decoded for a network's input fit
SLOTS = 7  # the first for the data of a job, the others for pixels, which their receiver may keep for a while
MAX_MESSAGE = 16 * 1024  # bytes; what is larger goes into a memory file
_MAX_DESCRIPTORS = 4
_LENGTH = struct.Struct("!I")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)  # not on macOS
_MFD_NOEXEC_SEAL = 0x8  # linux/memfd.h; Python 3.11 has no name for it


class ChannelClosed(ConnectionError):
    """The other process has closed its end: it has ended."""


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep messages apart, or where the system has none, a pair of streams."""
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError:  # macOS
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)


class Channel:
    """One end of a ``socket_pair``. A message is a JSON object with up to four descriptors."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self._received = bytearray()
        self._descriptors: list[int] = []

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self.socket.fileno()

    def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Send ``message``, with copies of ``descriptors``. Raises ``OSError`` where the other process has ended."""
        body = orjson.dumps(message)
        if len(body) + _LENGTH.size > MAX_MESSAGE:
            raise ValueError(f"A message of {len(body)} bytes; at most {MAX_MESSAGE} are allowed, with its length.")
        data = _LENGTH.pack(len(body)) + body
        if descriptors:
            socket.send_fds(self.socket, [data], descriptors)
        else:
            self.socket.sendall(data)

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """Return the next message and its descriptors, which the caller closes.

        None where it is not all here, on a socket that does not block. Raises ``ChannelClosed``, and ``ValueError``
        for what is no message.
        """
        while not self._is_complete():
            try:
                data, ancillary, flags, _ = self.socket.recvmsg(MAX_MESSAGE, _ANCILLARY_BYTES, _CLOSE_ON_EXEC)
            except BlockingIOError:
                return None
            except ConnectionError:
                data, ancillary, flags = b"", [], 0
            for level, kind, content in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    numbers = array.array("i")
                    numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                    self._descriptors += numbers
            if not data:
                raise ChannelClosed
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise ValueError("A message or its descriptors are larger than allowed.")
            self._received += data
        message = orjson.loads(memoryview(self._received)[_LENGTH.size :])
        descriptors, self._descriptors = self._descriptors, []
        self._received.clear()
        if not isinstance(message, dict):
            close_all(descriptors)
            raise ValueError("A message must be a JSON object.")
        return message, descriptors

    def close(self) -> None:
        """Close the socket, and the descriptors of a message that was never complete."""
        self.socket.close()
        close_all(self._descriptors)
        self._descriptors = []

    def _is_complete(self) -> bool:
        if len(self._received) < _LENGTH.size:
            return False
        (length,) = _LENGTH.unpack_from(self._received)
        if length + _LENGTH.size > MAX_MESSAGE or length + _LENGTH.size < len(self._received):
            raise ValueError("A message has another length than it says.")
        return bool(length + _LENGTH.size == len(self._received))


def memory_file(size: int = 0) -> int:
    """Return a descriptor of a new file of ``size`` zero bytes that only memory holds and no path names.

    Where the system has no such files, an unlinked temporary one.
    """
    descriptor = _new_file()
    try:
        if size:
            os.ftruncate(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _new_file() -> int:
    if hasattr(os, "memfd_create"):
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        for extra in (_MFD_NOEXEC_SEAL, 0):  # kernels before 6.3 do not know it, and a sysctl of later ones demands it
            try:
                return os.memfd_create("frcnn-image", flags | extra)
            except OSError:
                continue
    descriptor, path = tempfile.mkstemp(prefix="frcnn-image-")
    os.unlink(path)
    return descriptor


def shared_slots() -> int:
    """Return a descriptor of the memory file that two processes map both: ``SLOTS`` slots of ``SLOT_BYTES``.

    Mapped once and used again and again it is much cheaper than a new file for each image, whose every page the kernel
    has to find, clear and map.
    """
    descriptor = memory_file(SLOTS * SLOT_BYTES)
    seal(descriptor)
    return descriptor


def write_all(descriptor: int, parts: Iterable[bytes | memoryview]) -> None:
    """Write ``parts`` one after the other, each in full."""
    for part in parts:
        rest = memoryview(part).cast("B")
        while rest:
            rest = rest[os.write(descriptor, rest) :]


def seal(descriptor: int) -> None:
    """Fix the size of a memory file for good, so that a process may map it that does not trust this one.

    Whoever has mapped a file is killed by SIGBUS if another process makes it smaller.
    """
    if _seals(descriptor) is not None:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


def map_or_copy(descriptor: int, size: int) -> mmap.mmap | bytearray:
    """Return the bytes of a file that another process has written, ``size`` of them, at least 1.

    A memory file is mapped, for reading and writing; it has to be sealed. Any other is copied. Raises ``ValueError``
    where the file has another size or may still change it.
    """
    if os.fstat(descriptor).st_size != size:
        raise ValueError("A file has another size than the message says.")
    seals = _seals(descriptor)
    if seals is None:
        copy = bytearray(size)
        if os.preadv(descriptor, [copy], 0) != size:
            raise ValueError("A file has become shorter.")
        return copy
    if not seals & fcntl.F_SEAL_SHRINK:
        raise ValueError("A file is not sealed.")
    return mmap.mmap(descriptor, size)


def _seals(descriptor: int) -> int | None:
    """Return the seals of a memory file; None where the file, or the system, knows none."""
    if not hasattr(fcntl, "F_GET_SEALS"):
        return None
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        return None


def close_all(descriptors: Iterable[int]) -> None:
    """Close every descriptor."""
    for descriptor in descriptors:
        os.close(descriptor)
