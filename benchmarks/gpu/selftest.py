"""Check the bundled weights' answer to the service's self-test image in a precision, without the service's packages."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu.contenders import load
from benchmarks.gpu.section import Skipped
from benchmarks.lib.results import ROOT
from model.boxes import iou

FOLDER = ROOT / "service/inference"
# By precision: the least IoU of a box with its stored one, and how far its score may differ; as in self_test.py there.
LIMITS = {"fp32": (0.98, 0.01), "tf32": (0.90, 0.05), "bf16": (0.90, 0.05), "fp16": (0.90, 0.05)}


def check(precision: str, device: str) -> dict[str, Any]:
    """Return the worst IoU and score difference over the stored objects; raises ``AssertionError`` beyond a limit."""
    detector = load("LITE", precision, device)
    stored = json.loads((FOLDER / "self_test.json").read_text()).get(detector.info.sha256)
    if stored is None:
        raise Skipped("no answer is stored for these weights")
    [detections] = detector.detect([np.array(Image.open(FOLDER / "self_test.jpg").convert("RGB"))])
    least_iou, most_score = LIMITS[precision]
    worst_iou, worst_score = 1.0, 0.0
    for class_id, score, box in zip(stored["class_ids"], stored["scores"], stored["boxes"], strict=True):
        same_class = detections.class_ids == class_id
        if not bool(same_class.any()):
            raise AssertionError(f"no object of class {class_id} is detected")
        overlaps = iou(torch.tensor([box]), detections.boxes[same_class])[0]
        best = int(overlaps.argmax())
        worst_iou = min(worst_iou, float(overlaps[best]))
        worst_score = max(worst_score, abs(score - float(detections.scores[same_class][best])))
    if worst_iou < least_iou or worst_score > most_score:
        limits = f"IoU {worst_iou:.3f} (limit {least_iou}), score off by {worst_score:.3f} (limit {most_score})"
        raise AssertionError(limits)
    return {"objects": len(stored["boxes"]), "iou": worst_iou, "score": worst_score}
