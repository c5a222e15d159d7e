"""Write one step's gradients of a batch of three, and the weights after two steps; run by test_distributed.py.

python gradient_worker.py DATA OUT
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from model.data import load_dataset
from model.presets import LITE
from model.training.augment import PLAIN
from model.training.config import TrainingConfig
from model.training.distributed import Processes, shutdown
from model.training.trainer import Trainer, new_model


def main(data: str, out: Path) -> None:
    torch.set_num_threads(1)
    processes = Processes.join(torch.device("cpu"))
    training = TrainingConfig(batch_size=3, lr=1e-3, body_lr=1e-3, warmup=1, canvas=(96, 128), augment=PLAIN, frozen=())
    config = replace(LITE, sampling=replace(LITE.sampling, rpn_batch=32, roi_batch=16)).with_classes(3)
    # The initial weights of each process differ: those of the first must reach the others.
    model = new_model(config, seed=processes.rank)
    trainer = Trainer(model, load_dataset(data, "train"), training, processes=processes)
    losses = trainer.compute_gradients(trainer._batches(0)[0])
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    trainer.run(until=2)
    result = {"losses": torch.stack(list(losses)), "gradients": gradients, "after": trainer.averaged_state()}
    torch.save(result, out / f"{processes.rank}-of-{processes.world}.pt")
    shutdown()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
