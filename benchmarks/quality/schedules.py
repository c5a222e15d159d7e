"""Compare joint training with the paper's 4-step alternating training on the same budget (section 3.2 of the paper).

    pip install -e '.[train]'
    python -m benchmarks.quality.schedules --data ../shared/data/voc20 --out runs/schedules

LITE at 256 pixels from its ImageNet weights, once by each schedule, over the same images: a seeded part of voc20's
train, without the validation part (seed 0, 5 %) on which both are then evaluated. The budget is passes over images. Six
epochs give the four steps 2, 1, 2 and 1 whole ones, so that each of them sees every image, as the joint run does.

A run that was stopped goes on from its last checkpoint. The result goes to benchmarks/results/schedules.json, and a
table of it into docs/faster-rcnn.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.lib.machine import commit
from benchmarks.lib.markers import fill_file
from benchmarks.lib.results import ROOT, markdown_table, save
from model.checkpoint import ResolvedCheckpoint, load_into
from model.data import Dataset, load_dataset, split
from model.detector import Detector
from model.evaluation.coco import evaluate_detector
from model.faster_rcnn import FasterRCNN
from model.presets import LITE
from model.runtime.malloc import configure_malloc
from model.training.alternating import Schedule, TrainingStage, training_stages
from model.training.config import TrainingConfig
from model.training.initial_weights import initialise_weights
from model.training.log import LossLog
from model.training.losses import Losses, Objective
from model.training.trainer import Trainer, new_model

PAGE = ROOT / "docs" / "faster-rcnn.md"
VALIDATION = 0.05  # as `frcnn train` sets aside, by the same seed
CANVAS = (192, 256)  # small, to be cheap
CONFIG = replace(LITE, transform=replace(LITE.transform, min_size=CANVAS[1], max_size=CANVAS[1]))


def train(schedule: Schedule, dataset: Dataset, recipe: TrainingConfig, out: Path) -> tuple[Detector, dict[str, Any]]:
    """Train by one schedule, or continue it; returns the detector and what each part took."""

    def fresh() -> FasterRCNN:
        model = new_model(CONFIG.with_classes(len(dataset.classes)), recipe.seed)
        initialise_weights(model, "imagenet")
        return model

    def make_trainer(model: FasterRCNN, own: TrainingConfig, objective: Objective) -> Trainer:
        return Trainer(model, dataset, own, objective=objective)

    cost = {}
    for part in training_stages(schedule, recipe, fresh, make_trainer):
        name = part.name or "joint"
        cost[name] = {"steps": part.trainer.steps, "cpu_seconds": run(part, out / name)}
        print(schedule, name, cost[name], flush=True)
        state = part.trainer.averaged_state()
    model = FasterRCNN(CONFIG.with_classes(len(dataset.classes)))
    load_into(model, state)
    about = ResolvedCheckpoint(name=schedule, path=out, preset=None, classes=dataset.classes)
    return Detector(model, about, device="cpu", precision="fp32"), cost


def run(part: TrainingStage, folder: Path) -> float:
    """Train one part to its end, from where it stopped; returns its processor seconds over all its starts."""
    trainer, checkpoint, clock = part.trainer, folder / "checkpoint.pt", folder / "cpu_seconds.txt"
    before = 0.0
    if checkpoint.exists():
        trainer.load(checkpoint)
        before = float(clock.read_text())
    start = time.process_time()
    log = LossLog(folder / "log.jsonl", trainer, every=25)

    def save_checkpoint() -> float:
        seconds = round(before + time.process_time() - start, 1)
        clock.write_text(str(seconds))
        trainer.save(checkpoint)
        return seconds

    def report(step: int, losses: Losses) -> None:
        if line := log(step, losses):
            print(json.dumps(line), flush=True)
        if step % 100 == 0:
            save_checkpoint()

    if trainer.step == trainer.steps:
        return before
    trainer.run(report)
    return save_checkpoint()


def paragraph(result: dict[str, Any]) -> str:
    """Return the section of docs/faster-rcnn.md."""
    joint, alternating = (result["schedules"][name] for name in ("joint", "alternating"))
    recipe = result["recipe"]

    def minutes(run: dict[str, Any]) -> float:
        return sum(part["cpu_seconds"] for part in run["parts"].values()) / 60

    return (
        f"{result['images']} images of voc20/train, {recipe['epochs']:g} passes over them for either, from "
        f"ImageNet's weights at {CANVAS[1]} pixels; evaluated on the validation part "
        f"({result['validation_images']} images). One run each: the difference of two seeds is not known.\n\n"
        + markdown_table(
            ("schedule", "AP@.5", "AP", "AR@100", "processor minutes"),
            [
                (name, f"{run['ap50']:.3f}", f"{run['ap']:.3f}", f"{run['ar100']:.3f}", f"{minutes(run):.1f}")
                for name, run in (("joint", joint), ("4-step alternating", alternating))
            ],
        )
    )


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True, help="the runs' folder; not to be committed")
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    configure_malloc()
    whole, held = split(load_dataset(options.data, "train", on_bad_box="skip"), VALIDATION, 0)
    order = np.random.default_rng(options.seed).permutation(len(whole))[: options.images]
    dataset = whole.subset(sorted(order.tolist()))
    recipe = TrainingConfig(epochs=options.epochs, batch_size=8, warmup=60, canvas=CANVAS, seed=options.seed)
    result: dict[str, Any] = {
        "data": Path(options.data).name,
        "images": len(dataset),
        "validation_images": len(held),
        "recipe": asdict(recipe),
        "torch": torch.__version__,
        "commit": commit(),
        "schedules": {},
    }
    for schedule in get_args(Schedule):
        detector, cost = train(schedule, dataset, recipe, options.out / schedule)
        evaluation = evaluate_detector(detector, held, progress=False)
        figures = {key: value for key, value in evaluation.to_dict().items() if key != "classes"}
        result["schedules"][schedule] = {"parts": cost} | figures
        print(schedule, f"AP {evaluation.ap:.3f} AP@.5 {evaluation.ap50:.3f}", flush=True)
    save("schedules", result)
    fill_file(PAGE, "schedules", f"\n{paragraph(result)}")


if __name__ == "__main__":
    main()
