"""The processes that decode images, shared by all services that the tests start."""

import atexit
import threading

from service.images.child import ImageProcess


class SharedProcesses:
    """Hand the same processes out to one service after the other: starting new ones for each takes long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[ImageProcess] = []

    def take(self) -> ImageProcess:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return ImageProcess.start()

    def give_back(self, process: ImageProcess) -> None:
        with self._lock:
            self._idle.append(process)

    def end(self) -> None:
        while self._idle:
            process = self._idle.pop()
            process.kill()
            process.wait()


IMAGE_PROCESSES = SharedProcesses()
atexit.register(IMAGE_PROCESSES.end)
