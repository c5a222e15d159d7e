"""The schedules of training: joint, and the paper's 4-step alternating training (arXiv 1506.01497, section 3.2).

    1. the RPN, with a backbone of its own                               from the initial weights
    2. the detector, with a backbone of its own, on step 1's proposals   from the initial weights again
    3. the RPN anew, over step 2's backbone, which is frozen
    4. the detector's own layers, on step 3's proposals                  from step 2

The result is step 2's backbone with step 3's RPN and step 4's detector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from model.faster_rcnn import FasterRCNN
from model.training.config import TrainingConfig
from model.training.losses import DetectorOnlyLosses, Objective, joint_losses, rpn_only_losses
from model.training.trainer import Trainer

Schedule = Literal["joint", "alternating"]


@dataclass(frozen=True)
class Step:
    """One of the four steps.

    share: of the run's epochs (py-faster-rcnn's alt_opt: 80k, 40k, 80k and 40k of 240k iterations).
    frozen: prefixes of the parameters that the step does not train.
    """

    name: str
    share: float
    frozen: tuple[str, ...]


STEPS = (
    Step("1-rpn", 1 / 3, ("roi_heads.",)),
    Step("2-detector", 1 / 6, ("rpn.",)),
    Step("3-rpn", 1 / 3, ("backbone.", "roi_heads.")),
    Step("4-detector", 1 / 6, ("backbone.", "rpn.")),
)


@dataclass(frozen=True)
class TrainingStage:
    """A trainer that is ready to run. name: of its folder below the run's, empty where there is only one stage."""

    name: str
    trainer: Trainer


# Makes a trainer on the data for a model, a configuration and the losses to minimise.
MakeTrainer = Callable[[FasterRCNN, TrainingConfig, Objective], Trainer]


def training_stages(
    schedule: Schedule, config: TrainingConfig, new_model: Callable[[], FasterRCNN], make_trainer: MakeTrainer
) -> Iterator[TrainingStage]:
    """Yield the stages of a schedule in turn; the caller runs each to its end before it asks for the next.

    new_model: makes a model with the initial weights. The last trainer's averaged state is the result.
    """
    if schedule == "joint":
        yield TrainingStage("", make_trainer(new_model(), config, joint_losses))
        return

    def stage(step: Step, model: FasterRCNN, objective: Objective) -> TrainingStage:
        step_config = replace(
            config,
            epochs=config.epochs * step.share,
            warmup=max(1, round(config.warmup * step.share)),
            frozen=(*config.frozen_prefixes(model.config.backbone), *step.frozen),
        )
        return TrainingStage(step.name, make_trainer(model, step_config, objective))

    proposer, detector = new_model(), new_model()
    initial_rpn = {key: value.clone() for key, value in detector.rpn.state_dict().items()}

    first = stage(STEPS[0], proposer, rpn_only_losses)
    yield first
    _load_averaged_weights(first.trainer)
    proposer.requires_grad_(False).train()  # in training mode it gives more proposals

    second = stage(STEPS[1], detector, DetectorOnlyLosses(proposer))
    yield second
    _load_averaged_weights(second.trainer)

    detector.rpn.load_state_dict(initial_rpn)
    third = stage(STEPS[2], detector, rpn_only_losses)
    yield third
    _load_averaged_weights(third.trainer)

    yield stage(STEPS[3], detector, DetectorOnlyLosses())


@torch.no_grad()
def _load_averaged_weights(trainer: Trainer) -> None:
    """Copy the averaged weights, which are the result of a stage, into the model for the next stage."""
    for parameter, average in zip(trainer.trained, trainer.average, strict=True):
        parameter.copy_(average)
