"""The paper's 4-step alternating training (P 3.2), and joint training beside it.

    1. the RPN, with a backbone of its own                               from the start weights
    2. the detector, with a backbone of its own, on step 1's proposals   from the start weights again
    3. the RPN anew, over step 2's backbone, which stays as it is
    4. the detector's own layers, on step 3's proposals                  from step 2

What comes out is step 2's backbone with step 3's RPN and step 4's detector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from model.faster_rcnn import FasterRCNN
from model.training.losses import DetectorAlone, Objective, joint_losses, rpn_alone
from model.training.trainer import Recipe, Trainer

Schedule = Literal["joint", "alternating"]


@dataclass(frozen=True)
class Step:
    """One of the four. share: of the recipe's epochs (PFR alt_opt: 80k, 40k, 80k and 40k of 240k iterations).

    frozen: what the step leaves alone, as prefixes of parameters.
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
class Part:
    """A trainer that is ready to run. name: of its folder below the run's, empty for the only one."""

    name: str
    trainer: Trainer


# From a model, a recipe and what is to be learnt to a trainer on the data.
MakeTrainer = Callable[[FasterRCNN, Recipe, Objective], Trainer]


def parts(
    schedule: Schedule, recipe: Recipe, fresh: Callable[[], FasterRCNN], make_trainer: MakeTrainer
) -> Iterator[Part]:
    """The trainers of a schedule, one after the other; the caller runs each to its end before it asks for the next.

    fresh: a model with the start weights. The last trainer's averaged state is the result.
    """
    if schedule == "joint":
        yield Part("", make_trainer(fresh(), recipe, joint_losses))
        return

    def trainer_of(step: Step, model: FasterRCNN, objective: Objective) -> Trainer:
        own = replace(
            recipe,
            epochs=recipe.epochs * step.share,
            warmup=max(1, round(recipe.warmup * step.share)),
            frozen=(*recipe.frozen, *step.frozen),
        )
        return make_trainer(model, own, objective)

    proposer, detector = fresh(), fresh()
    new_head = {key: value.clone() for key, value in detector.rpn.state_dict().items()}

    first = trainer_of(STEPS[0], proposer, rpn_alone)
    yield Part(STEPS[0].name, first)
    _settle(first)
    proposer.requires_grad_(False).train()  # its proposals are those of training: more of them

    second = trainer_of(STEPS[1], detector, DetectorAlone(proposer))
    yield Part(STEPS[1].name, second)
    _settle(second)

    detector.rpn.load_state_dict(new_head)
    third = trainer_of(STEPS[2], detector, rpn_alone)
    yield Part(STEPS[2].name, third)
    _settle(third)

    yield Part(STEPS[3].name, trainer_of(STEPS[3], detector, DetectorAlone()))


@torch.no_grad()
def _settle(trainer: Trainer) -> None:
    """Put the averaged weights, which are the ones that ship, into the model for the next step."""
    for parameter, average in zip(trainer.trained, trainer.average, strict=True):
        parameter.copy_(average)
