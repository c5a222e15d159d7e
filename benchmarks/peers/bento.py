"""BentoML: ``bentoml serve benchmarks.peers.bento:Detect``."""

from __future__ import annotations

from typing import Any

import bentoml
from PIL.Image import Image

from benchmarks.peers.models import BATCH, TIMEOUT, Predictor


@bentoml.service(workers=1, traffic={"timeout": TIMEOUT})
class Detect:
    def __init__(self) -> None:
        self.predictor = Predictor()

    @bentoml.api(batchable=BATCH > 1, max_batch_size=BATCH, max_latency_ms=TIMEOUT * 1000)
    def predict(self, images: list[Image]) -> list[dict[str, Any]]:
        return self.predictor.predict(images)
