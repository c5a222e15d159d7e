import torch

from benchmarks.lib.contenders import DetectedBoxes, share_found


def test_the_share_of_boxes_that_were_found_again() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])
    expected = DetectedBoxes(boxes, torch.tensor([0.9, 0.6]), torch.tensor([1, 2]))
    assert share_found([expected], [expected]) == 1.0
    moved = DetectedBoxes(boxes + torch.tensor([[0.0], [5.0]]), expected.scores, expected.labels)
    assert share_found([moved], [expected]) == 0.5
    relabelled = DetectedBoxes(boxes, expected.scores, torch.tensor([2, 2]))
    assert share_found([relabelled], [expected]) == 0.5
    nothing = DetectedBoxes(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert share_found([nothing], [expected]) == 0.0
