"""The service's self-test: the bundled weights' stored answer for its test image, in a precision.

``service.inference.self_test`` does it where it can be imported; where a package of the service is missing, the few
lines below compare the objects alone.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow

from benchmarks import report
from benchmarks.gpu.contenders import load
from benchmarks.gpu.section import Skipped
from model.boxes import iou
from model.detector import Detector

# As service/inference/self_test.py has them: IoU at least, score off by at most.
_LIMITS = {"fp32": (0.98, 0.01), "tf32": (0.90, 0.05), "bf16": (0.90, 0.05), "fp16": (0.90, 0.05)}


def check(precision: str, device: str) -> dict[str, Any]:
    """Which way it was checked; raises where the answer is not the stored one."""
    detector = load("LITE", precision, device)
    try:
        from service.inference.self_test import SelfTest
    except ModuleNotFoundError as error:
        return _plainly(detector, precision) | {"checked_by": f"this benchmark ({error.name} is not installed)"}
    SelfTest.prepare(detector)
    return {"checked_by": "service.inference.self_test"}


def _plainly(detector: Detector, precision: str) -> dict[str, Any]:
    """Every stored object is found again."""
    folder = report.ROOT / "service/inference"
    stored = json.loads((folder / "self_test.json").read_text()).get(detector.info.sha256)
    if stored is None:
        raise Skipped("no answer is stored for these weights")
    [found] = detector.detect([np.array(Pillow.open(folder / "self_test.jpg").convert("RGB"))])
    least, most = _LIMITS[precision]
    worst_iou, worst_score = 1.0, 0.0
    for class_id, score, box in zip(stored["class_ids"], stored["scores"], stored["boxes"], strict=True):
        same = found.class_ids == class_id
        if not bool(same.any()):
            raise AssertionError(f"no object of class {class_id} is found")
        overlaps = iou(torch.tensor([box]), found.boxes[same])[0]
        best = int(overlaps.argmax())
        worst_iou = min(worst_iou, float(overlaps[best]))
        worst_score = max(worst_score, abs(score - float(found.scores[same][best])))
    if worst_iou < least or worst_score > most:
        raise AssertionError(f"IoU {worst_iou:.3f} (limit {least}), score off by {worst_score:.3f} (limit {most})")
    return {"objects": len(stored["boxes"]), "iou": worst_iou, "score": worst_score}
