import os
import subprocess
import sys
import time

from benchmarks.lib.process_tree import memory_mib, processor_seconds

CODE = """
import sys
data = bytearray(50 * 2**20)
data[::4096] = b"x" * 12800
sum(range(10**7))
print(flush=True)
sys.stdin.read()
"""


def test_memory_and_processor_time_include_children_and_those_that_have_ended() -> None:
    memory, processor = memory_mib(os.getpid()), processor_seconds(os.getpid())
    with subprocess.Popen([sys.executable, "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert memory_mib(os.getpid()) > memory + 40
        used = processor_seconds(os.getpid())
        assert used > processor
    until = time.monotonic() + 10
    while memory_mib(os.getpid()) > memory + 40 and time.monotonic() < until:
        time.sleep(0.05)
    assert memory_mib(os.getpid()) < memory + 40
    assert processor_seconds(os.getpid()) >= used
