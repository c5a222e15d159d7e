"""Measure training steps a second on images from a seed: loss, gradients, optimiser and average, data in memory."""

from __future__ import annotations

import statistics
import time
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.gpu import device as devices
from benchmarks.gpu.section import Data, Point, Section
from benchmarks.gpu.settings import Settings
from benchmarks.lib.images import Size, drawn_image
from model.data import Dataset, Sample
from model.presets import find_preset
from model.runtime.device import choose_device
from model.training.augment import PLAIN
from model.training.batches import Batches
from model.training.config import TrainingConfig
from model.training.trainer import Trainer, new_model

_CLASSES = ("__background__", *(f"class {number}" for number in range(1, 21)))


def dataset(size: Size, count: int) -> Dataset:
    """Return ``count`` images with eight boxes each, in memory."""
    height, width = size
    samples, decoded = [], {}
    for number in range(count):
        rng = np.random.default_rng(number)
        corner = rng.uniform((0, 0), (width * 0.6, height * 0.6), (8, 2))
        boxes = np.hstack([corner, corner + rng.uniform(0.1, 0.4, (8, 2)) * (width, height)]).astype(np.float32)
        path = Path(f"image-{number}")
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        labels = rng.integers(1, len(_CLASSES), 8)
        samples.append(Sample(path, number, width, height, boxes, labels, np.zeros(8, bool), areas))
        decoded[path] = drawn_image(height, width, seed=number)
    return Dataset(tuple(samples), _CLASSES, _decoded=decoded)


def measure(preset: str, canvas: Size, batch: int, bf16: bool, settings: Settings, seconds: float) -> Data:
    """Measure the seconds of a step, after three for warming up."""
    devices.reset_memory(settings.device)
    data = dataset(canvas, batch)
    recipe = TrainingConfig(epochs=100_000, batch_size=batch, canvas=canvas, augment=PLAIN, bf16=bf16)
    model = new_model(find_preset(preset).with_classes(len(_CLASSES)))
    trainer = Trainer(model, data, recipe, device=choose_device(settings.device))
    trainer.model.train()
    loaded = Batches(data, canvas, batch, PLAIN)[0]
    seconds_per_step: list[float] = []

    def step() -> None:
        trainer._train_step(loaded)
        trainer.step += 1

    until = time.monotonic() + min(10.0, seconds)
    while len(seconds_per_step) < (2 if settings.tiny else 8) or (not settings.tiny and time.monotonic() < until):
        seconds_per_step.append(devices.time_call(step, settings.device))
    steady = seconds_per_step[min(3, len(seconds_per_step) - 1) :]
    median = statistics.median(steady)
    figures = {"batch": batch, "canvas": canvas, "steps": len(steady), "median_ms": median * 1000}
    figures |= {"steps_per_s": 1 / median, "images_per_s": batch / median}
    return figures | devices.peak_memory(settings.device)


def points(settings: Settings) -> list[Point]:
    if settings.tiny:
        return [Point("LITE, fp32", partial(measure, "LITE", (96, 128), 2, False, settings))]
    return [
        Point(f"{preset}, {batch} at once, {how}", partial(measure, preset, canvas, batch, bf16, settings))
        for preset, canvas, batch in (("LITE", (288, 384), 16), ("RESNET50_FPN", (800, 1088), 4))
        for how, bf16 in (("bf16 autocast", True), ("fp32", False))
    ]


SECTION = Section("training", points, seconds=120)
