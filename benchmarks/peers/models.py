"""Give every peer the same ``predict``: torchvision's detector as its users have it, or ours.

Settings come from the environment, since a peer starts its workers itself: PEER_ENGINE (torchvision or ours),
PEER_PRESET, PEER_THREADS (of torch), PEER_BATCH and PEER_PORT.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

BATCH = int(os.environ.get("PEER_BATCH", "1"))
PORT = int(os.environ.get("PEER_PORT", "0"))
WAIT = 0.01  # seconds that a batch waits for more requests
TIMEOUT = 600  # seconds that a request may take


class Predictor:
    """Detects in encoded or decoded images; returns boxes [D, 4] xyxy in pixels, scores and labels of each."""

    def __init__(self) -> None:
        from benchmarks.lib import models

        torch.set_num_threads(int(os.environ["PEER_THREADS"]))
        preset = os.environ["PEER_PRESET"]
        self.ours = os.environ["PEER_ENGINE"] == "ours"
        if self.ours:
            from model.detector import Detector
            from model.runtime.malloc import configure_malloc

            configure_malloc()
            self.model: Any = Detector.from_checkpoint(models.checkpoint(preset))
            self.model.warm_up()
        else:
            self.model = models.torchvision_detector(preset)

    def predict(self, files: Sequence[bytes | bytearray | Image.Image]) -> list[dict[str, Any]]:
        """Return a dict for each image."""
        images = [file if isinstance(file, Image.Image) else Image.open(io.BytesIO(file)) for file in files]
        arrays = [np.array(image.convert("RGB")) for image in images]
        if self.ours:
            return [_answer(each.boxes, each.scores, each.class_ids) for each in self.model.detect(arrays)]
        with torch.inference_mode():
            detections = self.model([torch.from_numpy(array).permute(2, 0, 1).float() / 255 for array in arrays])
        return [_answer(each["boxes"], each["scores"], each["labels"]) for each in detections]


def _answer(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    return {"boxes": boxes.tolist(), "scores": scores.tolist(), "labels": labels.tolist()}
