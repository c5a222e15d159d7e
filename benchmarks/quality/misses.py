"""Explain five objects that the bundled weights miss on voc20/test, through ``POST /explain``.

    python -m benchmarks.quality.misses

Writes benchmarks/results/misses.json and a drawing of the boxes alone for each, docs/images/miss-N.svg: the photographs
may not be published. A second request for each miss changes one thing, and says whether that would have detected it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from starlette.testclient import TestClient

from benchmarks.lib.results import ROOT, save
from model.detector import DetectOptions, Detector, explain
from service.app import create_app
from service.inference.detector import load_detector
from service.settings import load_settings

DATA = ROOT.parent / "shared" / "data" / "voc20"
DASHES = {"expected": "6 4", "anchor": "2 3"}
COLOURS = {
    "expected": "#8a94a6",
    "anchor": "#3b6fd8",
    "proposal": "#d98a00",
    "detection": "#2f9e5f",
    "lost to": "#d6453d",
}


@dataclass(frozen=True)
class Miss:
    """An image file, the box that should have been detected (xyxy, in its pixels), and the one thing to change."""

    file: str
    label: str
    box: tuple[float, float, float, float]
    change: dict[str, float]


def explain_miss(client: TestClient, body: bytes, miss: Miss, **options: float) -> dict[str, Any]:
    """Return the explanation of one miss."""
    data = {"boxes": json.dumps([miss.box]), "labels": json.dumps([miss.label])}
    response = client.post("/explain", files={"image": body}, data=data, params=options)
    response.raise_for_status()
    explanation: dict[str, Any] = response.json()["explanations"][0]
    return explanation


def with_rpn(path: Path, miss: Miss, **limits: Any) -> dict[str, Any]:
    """Explain it for a detector whose RPN has other limits."""
    detector = Detector.from_checkpoint("lite-voc20")
    config = replace(detector.config, rpn=replace(detector.config.rpn, **limits))
    detector.config = detector.model.config = config
    detector.model.rpn.config = config.rpn
    image = np.array(Image.open(path).convert("RGB"))
    (detections,) = detector.detect([image], DetectOptions(trace=True))
    assert detections.trace is not None
    (explanation,) = explain(detections.trace, torch.tensor([miss.box]), [miss.label])
    return {"stage": explanation.stage, "sentence": explanation.sentence}


def draw(explanation: dict[str, Any], width: int, height: int) -> str:
    """Draw the boxes of an explanation as SVG, without the photograph."""
    rival = (explanation["detection"] or {}).get("suppressed_by") or explanation["proposal"]["suppressed_by"]
    boxes = {"anchor": explanation["anchor"]["box"], "proposal": explanation["proposal"]["box"]}
    if explanation["detection"]:
        boxes["detection"] = explanation["detection"]["box"]
    if rival:
        boxes["lost to"] = rival["box"]
    boxes["expected"] = explanation["box"]
    parts = [f'<rect width="{width}" height="{height}" fill="#f3f5f8" stroke="#c9d0da"/>']
    for row, (name, (x1, y1, x2, y2)) in enumerate(boxes.items()):
        pen = f'stroke="{COLOURS[name]}" stroke-width="2" stroke-dasharray="{DASHES.get(name, "none")}"'
        parts.append(
            f'<rect x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" fill="none" {pen}/>'
        )
        parts.append(f'<path d="M{width + 12} {20 + row * 20}h22" {pen}/>')
        parts.append(f'<text x="{width + 42}" y="{24 + row * 20}" fill="#5a6474">{name}</text>')
    size = f'viewBox="-4 -4 {width + 128} {height + 8}" width="{width + 128}" height="{height + 8}"'
    body = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">\n{body}\n</svg>\n'


def main() -> None:
    """Run the command."""
    misses = [Miss(**{**entry, "box": tuple(entry["box"])}) for entry in json.loads(CASES.read_text())]
    app = create_app(load_settings(weights="lite-voc20"), detector_factory=load_detector)
    rows = []
    with TestClient(app) as client:
        for number, miss in enumerate(misses, start=1):
            path = next(DATA.rglob(miss.file))
            body = path.read_bytes()
            explanation = explain_miss(client, body, miss)
            limits = {name: int(value) for name, value in miss.change.items() if name in ("pre_nms", "post_nms")}
            second = with_rpn(path, miss, **limits) if limits else explain_miss(client, body, miss, **miss.change)
            width, height = Image.open(path).size
            (ROOT / f"docs/images/miss-{number}.svg").write_text(draw(explanation, width, height))
            after = {"stage": second["stage"], "sentence": second["sentence"]}
            rows.append({"file": miss.file, "change": miss.change, "explanation": explanation, "after": after})
            print(
                f"{number}. {miss.file} {miss.label}: {explanation['stage']}: {explanation['sentence']}\n"
                f"   {miss.change}: {after}"
            )
    result = {"weights": "lite-voc20", "data": "voc20/test", "misses": rows}
    save("misses", result)


CASES = Path(__file__).with_name("misses.json")

if __name__ == "__main__":
    main()
