"""Overfit PAPER_VGG16 on a handful of voc20 images: a check of the training machinery.

    pip install -e '.[train]'
    python -m benchmarks.quality.overfit --data ../shared/data/voc20 --out runs/overfit

It checks everything from anchors over both losses to the detections, and says nothing of accuracy: the images that it
is evaluated on are those that it was trained on. All is as the preset has it, the frozen first stages included
(section 3.1.3 of the paper), but for four things: the weights begin random and not as ImageNet's, the short side is 224
and not 600, there is no dropout, and the optimiser is ours. Thirteen random layers map all images to nearly the same
point; so each convolution's outputs are centred and scaled over the images first (data-dependent initialisation, arXiv
1511.06856).

The images are drawn by seed from those that are landscape and have one to three boxes, all of which count, of different
classes among the images, and of a tenth of the image or more each.

A run that was stopped goes on from its last checkpoint. The result goes to benchmarks/results/overfit-vgg16.json.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import torchvision

from benchmarks.lib.machine import commit
from benchmarks.lib.results import save
from model import checkpoint
from model.data import Dataset, load_dataset
from model.detector import Detector
from model.evaluation.coco import Evaluation, evaluate_detector
from model.faster_rcnn import FasterRCNN
from model.presets import PAPER_VGG16
from model.runtime.malloc import configure_malloc
from model.training.augment import PLAIN
from model.training.config import TrainingConfig
from model.training.log import LossLog
from model.training.losses import Losses
from model.training.trainer import Trainer, new_model
from model.transform import Transform

CANVAS = (224, 304)
REPEATS = 25  # of the images in an epoch, so that the loader need not start anew for every step
FROZEN = tuple(f"backbone.body.features.{i}." for i in (0, 2, 5, 7))  # conv1 and conv2, section 3.1.3 of the paper
CONFIG = replace(
    PAPER_VGG16,
    transform=replace(PAPER_VGG16.transform, min_size=CANVAS[0], max_size=CANVAS[1]),
    roi_head=replace(PAPER_VGG16.roi_head, dropout=0.0),
)


def choose(dataset: Dataset, count: int, seed: int) -> list[int]:
    """Return ``count`` indices of samples by the rule above, in the data set's order."""
    chosen: list[int] = []
    classes_so_far: set[int] = set()
    for index in np.random.default_rng(seed).permutation(len(dataset)).tolist():
        sample = dataset.samples[index]
        sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
        large = (sides.prod(axis=1) >= 0.1 * sample.width * sample.height).all()
        classes = set(sample.class_ids.tolist())
        few = 1 <= len(classes) <= len(sample.boxes) <= 3
        if sample.width > sample.height and few and large and not sample.ignore.any() and not classes & classes_so_far:
            chosen.append(index)
            classes_so_far |= classes
        if len(chosen) == count:
            return sorted(chosen)
    raise ValueError(f"fewer than {count} images fit the rule")


@torch.no_grad()
def random_start(model: FasterRCNN, images: Dataset, seed: int) -> None:
    """Load torchvision's own random VGG-16 as its ImageNet weights would be; then centre and scale its outputs."""
    torch.manual_seed(seed)
    state = torchvision.models.vgg16(weights=None).state_dict()
    checkpoint.load_into(model, checkpoint.from_imagenet(state, model.config), partial=True)
    transform = Transform(model.config.transform)
    values = transform([images.load(i) for i in range(len(images))], CANVAS, torch.device("cpu")).pixels
    for layer in model.backbone.body.features:
        if isinstance(layer, torch.nn.Conv2d):
            deviation, mean = torch.std_mean(layer(values), dim=(0, 2, 3))
            layer.weight.div_(deviation[:, None, None, None])
            layer.bias.sub_(mean).div_(deviation)
        values = layer(values)


def evaluate(trainer: Trainer, images: Dataset) -> Evaluation:
    """Evaluate the averaged weights on the images that they were trained on."""
    model = FasterRCNN(trainer.model.config)
    model.load_state_dict(trainer.averaged_state())
    about = checkpoint.ResolvedCheckpoint(
        name="overfit", path=checkpoint.weights_dir(), preset=None, classes=images.classes
    )
    detector = Detector(model, about, device="cpu", precision="fp32", canvas="exact")
    return evaluate_detector(detector, images, batch_size=1, progress=False)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True, help="the run's folder; not to be committed")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="autocast while training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    configure_malloc()
    dataset = load_dataset(options.data, "train", on_bad_box="skip")
    chosen = choose(dataset, options.images, options.seed)
    images = dataset.subset(chosen)
    for sample in images.samples:
        print(sample.path.name, [dataset.classes[i] for i in sample.class_ids], sample.boxes.round().tolist())

    epoch = dataset.subset(chosen * REPEATS)
    steps_per_epoch = -(-len(epoch) // options.batch_size)
    recipe = TrainingConfig(
        epochs=options.steps / steps_per_epoch,
        batch_size=options.batch_size,
        lr=options.lr,
        body_lr=options.lr,
        weight_decay=5e-4,
        warmup=10,
        ema=0.9,
        frozen=FROZEN,
        canvas=CANVAS,
        augment=PLAIN,
        bf16=options.bf16,
        seed=options.seed,
    )
    model = new_model(CONFIG.with_classes(len(dataset.classes)), options.seed)
    random_start(model, images, options.seed)
    trainer = Trainer(model, epoch, recipe)
    file, start = options.out / "checkpoint.pt", time.process_time()
    if file.exists():
        trainer.load(file)
    log, lines = LossLog(options.out / "log.jsonl", trainer, every=5), []

    def report(step: int, losses: Losses) -> None:
        if line := log(step, losses):
            lines.append(line)
            print(json.dumps(line), flush=True)
        if step % 25 == 0:
            trainer.save(file)

    trainer.run(report)
    evaluation = evaluate(trainer, images)
    minutes = (time.process_time() - start) / 60
    print(f"AP@.5 {evaluation.ap50:.3f}, AP {evaluation.ap:.3f}, {minutes:.1f} processor minutes")
    result = {
        "note": "trained and evaluated on the same images: a check of the machinery, not of accuracy",
        "preset": CONFIG.name,
        "start": "random (torchvision's vgg16 initialisation, centred and scaled over the images)",
        "data": Path(options.data).name,
        "images": [sample.path.name for sample in images.samples],
        "transform": {"min_size": CANVAS[0], "max_size": CANVAS[1]},
        "dropout": CONFIG.roi_head.dropout,
        "steps": trainer.steps,
        "recipe": asdict(recipe),
        "torch": torch.__version__,
        "commit": commit(),
        "evaluation": {key: value for key, value in evaluation.to_dict().items() if key != "classes"}
        | {"classes": [row for row in evaluation.to_dict()["classes"] if row["boxes"]]},
    }
    save("overfit-vgg16", result)


if __name__ == "__main__":
    main()
