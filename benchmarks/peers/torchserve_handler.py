"""TorchServe: the handler that ``benchmarks.serving.compare`` packs into an archive."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.models import Predictor


class Handler:
    def initialize(self, context: Any) -> None:
        self.predictor = Predictor()

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        return self.predictor.predict([part.get("data") or part.get("body") for part in data])
