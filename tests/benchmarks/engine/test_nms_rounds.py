import torch

from benchmarks.engine import nms_rounds
from benchmarks.lib.images import photographs
from model.detector import Detector
from model.nms import CLASS_ITERATIONS, LEVEL_ITERATIONS


def test_rounds_of_nms_are_counted_to_the_one_that_changes_nothing() -> None:
    left = torch.arange(5.0) * 5
    chain = torch.stack((left, torch.zeros(5), left + 10, torch.ones(5)), dim=1)[None]  # each overlaps its neighbours
    assert [nms_rounds.rounds(chain[:, :n], torch.ones(1, n), 0.3) for n in (1, 2, 3, 5)] == [1, 2, 3, 5]
    assert nms_rounds.rounds(chain, torch.ones(1, 5), 0.4) == 1  # 1 / 3 is not above it


def test_rounds_of_nms_are_those_of_each_batch() -> None:
    detector = Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32")
    photograph = photographs(1)[0]
    images = [photograph, photograph.transpose(1, 0, 2), photograph]
    before = detector.detect(images)
    counted = nms_rounds.survey(detector, images, 2, [0.35, 0.05])
    assert [len(row["rounds"]) for row in counted.values()] == [2, 2, 2]  # two canvases
    levels, few, many = (row["rounds"] for row in counted.values())
    assert all(1 < number <= LEVEL_ITERATIONS for number in levels)
    assert all(1 <= a <= b <= CLASS_ITERATIONS for a, b in zip(few, many, strict=True))
    after = detector.detect(images)
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(before, after, strict=True))
    (table,) = nms_rounds.tables({"weights": "x", "images": 3, "found": counted})
    assert " 2 " in table.markdown()
