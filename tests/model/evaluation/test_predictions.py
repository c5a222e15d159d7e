"""A detector runs over a data set, each image once, with others of its canvas size."""

import torch
from PIL import Image

from model.evaluation.coco import evaluate_detector
from model.structures import Detections
from tests.model.evaluation.samples import dataset, sample


class FakeDetector:
    """Detect the colour of an image's top-left pixel as its class; record the batches and the options."""

    def __init__(self):
        self.batches = []
        self.options = None

    def canvas_for(self, height, width):
        return (height, width)

    def detect(self, images, options):
        self.batches.append([image.shape for image in images])
        self.options = options
        return [
            Detections(
                boxes=torch.tensor([[0.0, 0.0, 10.0, 10.0]]),
                scores=torch.tensor([0.9]),
                class_ids=torch.tensor([int(image[0, 0, 0])]),
                labels=("x",),
                proposal_indices=torch.tensor([0]),
            )
            for image in images
        ]


def test_a_detector_sees_every_image_once_with_others_of_its_canvas(tmp_path):
    samples = []
    for i in range(7):
        size = (20, 30) if i % 2 else (30, 20)
        path = tmp_path / f"{i}.png"
        Image.new("RGB", size, (1 + i % 2, 0, 0)).save(path)
        samples.append(sample(i, [[0, 0, 10, 10]], [1 + i % 2], path=path, size=size))
    detector = FakeDetector()
    result = evaluate_detector(detector, dataset(*samples), batch_size=3, progress=False)
    assert result.ap == 1
    assert sorted(len(batch) for batch in detector.batches) == [1, 3, 3]
    assert all(len(set(batch)) == 1 for batch in detector.batches)
    assert detector.options.score_threshold == 0.001
