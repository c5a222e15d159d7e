"""Processes that decode, seen from their parent."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from service.errors import StartError
from service.images import child
from service.images.channel import SLOTS
from service.images.child import ImageProcess, StartProcesses
from tests.service.exchange import wait_for
from tests.service.image_processes import IMAGE_PROCESSES


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_process_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(StartError, match="could not be started"):
        ImageProcess.start()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(StartError, match="No such file"):
        ImageProcess.start()


def test_the_last_line_of_stderr_is_the_reason(monkeypatch, tmp_path):
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "__init__.py").write_text("raise RuntimeError('there is no Pillow')")
    monkeypatch.setattr(child, "_PACKAGES", str(tmp_path))
    with pytest.raises(StartError, match="RuntimeError: there is no Pillow"):
        ImageProcess.start()


def test_a_process_that_does_nothing_is_given_up(monkeypatch, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(child, "START_SECONDS", 0.1)
    with pytest.raises(StartError, match="did nothing"):
        ImageProcess.start()


def test_a_slot_is_free_again_when_nothing_refers_to_its_pixels():
    process = IMAGE_PROCESSES.take()
    arrays = []
    while (slot := process.free_slot()) is not None:
        arrays.append(process.pixels(slot, 10).reshape(2, 5)[1:, 2:])  # a view, as a tensor is
    assert len(arrays) == SLOTS - 1
    arrays.pop()
    assert process.free_slot() is not None
    arrays.clear()
    IMAGE_PROCESSES.give_back(process)


def test_a_process_given_back_ends():
    source = StartProcesses()
    process = source.take()
    source.give_back(process)
    assert has_ended(process.pid)


def test_processes_end_with_their_parent(repo):
    code = """
        import time
        from service.images.child import ImageProcess
        process = ImageProcess.start()
        print(process.pid, flush=True)
        time.sleep(99)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        cwd=repo,
        env=os.environ | {"PYTHONPATH": str(repo)},
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not has_ended(pid)
        parent.send_signal(signal.SIGKILL)
        wait_for(lambda: has_ended(pid))
