"""One process that decodes and draws, seen from its parent: start it, send it a job, receive the reply, end it."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import service
from service.errors import StartError
from service.images.channel import SLOT_BYTES, SLOTS, Channel, shared_slots, socket_pair

START_SECONDS = 60.0  # a process needs half a second; a machine may be busy
_END_SECONDS = 10.0  # for the kernel to end a killed process
_PACKAGES = str(Path(service.__file__).resolve().parent.parent)  # the folder that holds ``service``


class ImageProcess:
    """A started process (``service/images/process.py``). ``start`` and ``wait`` block: call them in a thread."""

    def __init__(self, popen: subprocess.Popen[bytes], channel: Channel, shared: mmap.mmap) -> None:
        self._popen = popen
        self._shared = shared
        self._free_slots = deque(range(1, SLOTS))
        self._slots_in_use: dict[int, weakref.ref[NDArray[np.uint8]]] = {}
        self.channel = channel
        self.pid = popen.pid

    @classmethod
    def start(cls) -> ImageProcess:
        """Start a process and wait until it is ready. Raises ``StartError`` with its reason."""
        ours, theirs = socket_pair()
        channel = Channel(ours)
        try:
            with theirs:
                popen = subprocess.Popen(
                    [sys.executable, "-m", "service.images.process"],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    env=_environment(),
                    start_new_session=True,  # so that Ctrl-C reaches the parent alone
                )
        except OSError as error:
            channel.close()
            raise StartError(f"No process that decodes images could be started: {error}.") from error
        ours.settimeout(START_SECONDS)
        slots = shared_slots()
        try:
            shared = mmap.mmap(slots, SLOTS * SLOT_BYTES)
            channel.send({}, [slots])
            channel.receive()
        except OSError as error:  # it has ended, or its time is over
            popen.kill()
            _, stderr = popen.communicate()
            channel.close()
            timed_out = isinstance(error, TimeoutError)
            reason = _last_line(stderr) or (f"it did nothing for {START_SECONDS:g} s" if timed_out else "it was ended")
            raise StartError(f"A process that decodes images could not be started: {reason}.") from error
        finally:
            os.close(slots)
        assert popen.stderr is not None
        popen.stderr.close()
        ours.setblocking(False)
        return cls(popen, channel, shared)

    def free_slot(self) -> int | None:
        """Return the number of a slot for the next job's pixels; None where the pixels of others fill all."""
        return self._free_slots[-1] if self._free_slots else None

    def write(self, data: Sequence[bytes | memoryview]) -> None:
        """Write the data of the next job, at most ``SLOT_BYTES``, where the process finds it."""
        end = 0
        for part in data:
            start, end = end, end + memoryview(part).nbytes
            self._shared[start:end] = part if isinstance(part, bytes) else part.cast("B")

    def read(self, count: int) -> bytes:
        """Return the result of a job, ``count`` bytes, at most ``SLOT_BYTES``, that the process wrote there."""
        return self._shared[:count]

    def pixels(self, slot: int, count: int) -> NDArray[np.uint8]:
        """Return the first ``count`` bytes of ``slot``, which was free: uint8 [count], not copied.

        The slot is free again when nothing refers to the array any more.
        """
        self._free_slots.remove(slot)
        array = np.frombuffer(self._shared, np.uint8, count, slot * SLOT_BYTES)
        free_slots = self._free_slots
        # Called in any thread. Every view of the array, such as a tensor, holds the array itself.
        self._slots_in_use[slot] = weakref.ref(array, lambda _: free_slots.append(slot))
        return array

    def kill(self) -> None:
        """End the process at once, whatever it does."""
        self._popen.kill()

    def wait(self) -> int:
        """Wait for the end of a process that was killed or has closed its socket, and free what it held here.

        Returns its exit code, or minus the number of the signal that ended it.
        """
        try:
            return self._popen.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # it has closed its socket and not ended
            self._popen.kill()
            return self._popen.wait()
        finally:
            self.channel.close()


class StartProcesses:
    """The source of processes of a service: each is started when it is taken, and ended when it is given back."""

    def take(self) -> ImageProcess:
        """Return an idle process; blocking. Raises ``StartError``."""
        return ImageProcess.start()

    def give_back(self, process: ImageProcess) -> None:
        """Accept a process that is idle and no longer used; blocking."""
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    paths = [_PACKAGES, os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONSAFEPATH": "1",  # the working directory holds nothing to import
        "OPENBLAS_NUM_THREADS": "1",  # its threads would take address space
        # What a large image took goes back to the kernel at once; blocks of small ones are kept.
        "MALLOC_MMAP_THRESHOLD_": str(4 * 2**20),
        "MALLOC_TRIM_THRESHOLD_": str(16 * 2**20),
    }


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1].strip().rstrip(".")[:500] if lines else ""
