from benchmarks.engine.contenders import torchvision
from benchmarks.lib import models
from benchmarks.lib.contenders import BASE, detector_contender, share_found
from benchmarks.lib.images import photographs
from model.detector import Detector


def test_torchvisions_parts_with_our_weights_find_the_same() -> None:
    """Else the comparison of speeds would compare two different networks."""
    images = photographs(2)
    detector = Detector.from_checkpoint("lite-voc20", device="cpu", precision="fp32", canvas="exact")
    answers = detector_contender(detector, "ours").detect(images)
    reference = torchvision(models.torchvision_detector("LITE"), "cpu", BASE)
    expected = reference.detect(images)
    assert sum(len(answer.boxes) for answer in expected) >= 2
    assert share_found(answers, expected) == share_found(expected, answers) == 1.0
    assert set(reference.stages()) == {"transform", "backbone", "rpn", "roi_head"}
