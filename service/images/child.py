"""One process that decodes and draws, seen from its parent: start it, send it a job, receive the reply, end it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import service
from service.errors import StartError
from service.images.channel import Channel, ChannelClosed, socket_pair

START_SECONDS = 60.0  # a process needs half a second; a machine may be busy
_END_SECONDS = 10.0  # for the kernel to end a killed process
_PACKAGES = str(Path(service.__file__).resolve().parent.parent)  # the folder that holds ``service``


class ImageProcess:
    """A started process (``service/images/process.py``). ``start`` and ``wait`` block: call them in a thread."""

    def __init__(self, popen: subprocess.Popen[bytes], channel: Channel) -> None:
        self._popen = popen
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
        try:
            channel.receive()
        except (ChannelClosed, TimeoutError) as error:
            popen.kill()
            _, stderr = popen.communicate()
            channel.close()
            reason = _last_line(stderr) or f"it did nothing for {START_SECONDS:g} s"
            raise StartError(f"A process that decodes images could not be started: {reason}.") from error
        assert popen.stderr is not None
        popen.stderr.close()
        ours.setblocking(False)
        return cls(popen, channel)

    def receive(self) -> tuple[dict[str, Any], list[int]] | None:
        """Return the reply to the last job, None if it is not here yet; raises as ``Channel.receive``."""
        return self.channel.receive()

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
