import time
from typing import Any

import torch

from benchmarks.gpu import device, speed
from benchmarks.gpu.contenders import GpuContender
from benchmarks.gpu.section import failures
from benchmarks.gpu.settings import Settings
from benchmarks.lib.contenders import BASE, DetectedBoxes
from benchmarks.lib.images import drawn_image


def test_a_contender_that_raises_is_out_and_the_others_go_on() -> None:
    calls = []

    def answer(images: Any) -> list[DetectedBoxes]:
        calls.append(len(images))
        return [DetectedBoxes(torch.tensor([[1.0, 2, 30, 40]]), torch.tensor([0.9]), torch.tensor([1])) for _ in images]

    def fail(_: Any) -> list[DetectedBoxes]:
        raise RuntimeError("out of memory")

    def fail_later(images: Any) -> list[DetectedBoxes]:
        calls.append(0)
        if calls.count(0) > 2:
            raise RuntimeError("too late")
        return answer(images)

    contenders = {
        name: GpuContender(name, detect, switches=device.switches())
        for name, detect in ((BASE, answer), ("ours fp32", answer), ("ours fp16", fail), ("ours bf16", fail_later))
    }
    rows = speed.race(contenders, [drawn_image(8, 8)], time.monotonic() + 0.5, Settings(device="cpu", tiny=True))
    assert rows["ours fp16"]["error"].endswith("out of memory")
    assert rows["ours bf16"]["error"].endswith("too late")
    assert rows[BASE]["to_base"] == 1
    assert rows["ours fp32"]["beside_base"]["matched"] == 1
    assert {where for where, _ in failures(list(rows.values()))} == {"/ours fp16", "/ours bf16"}
