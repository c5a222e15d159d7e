import os
import subprocess
import sys
import time

import pytest

from benchmarks.lib import service


def test_settings_become_the_variables_that_the_service_reads() -> None:
    assert service.environment_of({"max_queue": 3}) == {"FRCNN_MAX_QUEUE": "3"}


def test_a_service_that_ends_at_once_is_reported() -> None:
    with (
        pytest.raises(RuntimeError, match=r"ended with \d+ before it was ready"),
        service.running_service({"weights": "no-such-weights"}, log=subprocess.DEVNULL),
    ):
        pass


def test_all_descendants_of_a_process_are_listed() -> None:
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '60']).pid, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        sleeping = int(process.stdout.readline())
        until = time.monotonic() + 10
        while service.descendants(process.pid).get(sleeping) != "sleep" and time.monotonic() < until:
            time.sleep(0.01)
        assert service.descendants(process.pid) == {sleeping: "sleep"}
        assert process.pid in service.descendants(os.getpid())
        os.kill(sleeping, 15)
        assert service.stop(process) != 0
