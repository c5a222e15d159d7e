"""What every peer serves: torchvision's detector as its users have it, or ours, each behind ``predict``.

From the environment, since a peer starts its workers itself: PEER_ENGINE (torchvision or ours), PEER_PRESET,
PEER_THREADS (of torch), PEER_BATCH and PEER_PORT.
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
WAIT = 0.01  # seconds that a batch waits for company
PATIENCE = 600  # seconds that a request may take


class Predictor:
    """Files or pictures in, a dict each of boxes [D, 4] xyxy in pixels, scores and labels out."""

    def __init__(self) -> None:
        from benchmarks import pairs

        torch.set_num_threads(int(os.environ["PEER_THREADS"]))
        preset = os.environ["PEER_PRESET"]
        self.ours = os.environ["PEER_ENGINE"] == "ours"
        if self.ours:
            from model.detector import Detector
            from model.runtime.malloc import configure_malloc

            configure_malloc()
            self.model: Any = Detector.from_checkpoint(pairs.checkpoint(preset))
            self.model.warm_up()
        else:
            self.model = pairs.in_torchvision(preset)

    def predict(self, files: Sequence[bytes | bytearray | Image.Image]) -> list[dict[str, Any]]:
        """One answer each."""
        images = [file if isinstance(file, Image.Image) else Image.open(io.BytesIO(file)) for file in files]
        arrays = [np.array(image.convert("RGB")) for image in images]
        if self.ours:
            return [_answer(found.boxes, found.scores, found.class_ids) for found in self.model.detect(arrays)]
        with torch.inference_mode():
            found = self.model([torch.from_numpy(array).permute(2, 0, 1).float() / 255 for array in arrays])
        return [_answer(one["boxes"], one["scores"], one["labels"]) for one in found]


def _answer(boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    return {"boxes": boxes.tolist(), "scores": scores.tolist(), "labels": labels.tolist()}
