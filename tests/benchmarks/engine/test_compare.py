from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.engine import compare
from benchmarks.lib.contenders import Contender, DetectedBoxes
from model.runtime.precision import multiplies_bf16


def test_a_contender_that_fails_is_a_row_with_the_reason() -> None:
    def fail(_: Sequence[np.ndarray]) -> list[DetectedBoxes]:
        raise RuntimeError("no such operator\nat all")

    def detect(_: Sequence[np.ndarray]) -> list[DetectedBoxes]:
        return [DetectedBoxes(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))]

    contenders = [Contender("good", detect, lambda: {"rpn": 0.5}), Contender("broken", fail)]
    rows, peaks = compare.measure(contenders, [np.zeros((4, 4, 3), np.uint8)], 2, 0.0, "cpu")
    by_name = {row["name"]: row for row in rows}
    assert by_name["broken"]["failed"] == "RuntimeError: no such operator at all"
    assert by_name["good"]["seconds"]["runs"] == 2
    assert by_name["good"]["stages"] == {"rpn": 0.5}
    assert by_name["good"]["agrees"] == 1
    assert peaks["fp32"]["operations_per_s"] > 0
    assert ("bf16" in peaks) == multiplies_bf16(torch.device("cpu"))
