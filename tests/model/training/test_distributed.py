"""Two processes have the gradients that one has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.data import load_dataset
from model.presets import RESNET50_FPN_V2
from model.training.config import TrainingConfig, TrainingError
from model.training.distributed import Processes
from model.training.trainer import Trainer, new_model

WORKER = Path(__file__).with_name("gradient_worker.py")
ALONE = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(shapes_folder: Path, tmp_path: Path) -> None:
    # Three images for two: a mean over processes would weigh them wrongly.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(WORKER.parents[3])}
    for launcher in (ALONE, TORCHRUN):
        command = [*launcher, str(WORKER), str(shapes_folder), str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    single, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("0-of-1", "0-of-2", "1-of-2"))
    torch.testing.assert_close(first["losses"], single["losses"], rtol=1e-5, atol=1e-6)
    assert first["gradients"].keys() == single["gradients"].keys()
    for name, gradient in single["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name]), name
        # Sums are rounded in another order: against the tensor's own size.
        torch.testing.assert_close(
            first["gradients"][name], gradient, rtol=0, atol=2e-5 * max(float(gradient.abs().max()), 1e-3), msg=name
        )
    for name, value in first["after"].items():
        assert torch.equal(value, second["after"][name]), name


def test_a_batch_smaller_than_the_processes_is_refused(shapes_folder: Path) -> None:
    from model.presets import LITE

    dataset = load_dataset(shapes_folder, "train")
    with pytest.raises(TrainingError, match="A batch of 2 images leaves some of 3 processes without one"):
        Trainer(new_model(LITE.with_classes(3)), dataset, TrainingConfig(batch_size=2), processes=Processes(0, 3))


def test_batch_norms_are_refused_in_several_processes(shapes_folder: Path) -> None:
    dataset = load_dataset(shapes_folder, "train")
    with torch.device("meta"):
        model = new_model(RESNET50_FPN_V2.with_classes(3))
    with pytest.raises(TrainingError, match="RESNET50_FPN_V2 has batch norms"):
        Trainer(model, dataset, TrainingConfig(), processes=Processes(0, 2))


def test_a_single_process_sums_nothing_and_has_every_position() -> None:
    alone = Processes()
    assert alone.first
    assert alone.total(7) == 7
    assert list(alone.positions(3)) == [0, 1, 2]
    assert list(Processes(1, 2).positions(5)) == [1, 3]
