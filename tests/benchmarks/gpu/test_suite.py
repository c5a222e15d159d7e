import sys

from benchmarks.gpu import suite


def test_pytests_last_line_is_counted() -> None:
    text = (
        "....\nFAILED tests/gpu/test_x.py::test_y - in 3.0s\n=== 1 failed, 12 passed, 2 skipped, 1 error in 34.5s ==="
    )
    assert suite.counts(text) == {"failed": 1, "passed": 12, "skipped": 2, "error": 1}
    assert suite.counts("nothing") == {}


def test_a_command_that_hangs_is_stopped() -> None:
    code, text = suite.output([sys.executable, "-uc", "print('begun'); import time; time.sleep(600)"], 3)
    assert code is None
    assert text == "begun\n"
