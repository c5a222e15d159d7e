"""Two processes have the gradients that one has."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.training.distributed import Processes

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


def test_a_single_process_sums_nothing_and_has_every_position() -> None:
    alone = Processes()
    assert alone.first
    assert alone.total(7) == 7
    assert list(alone.positions(3)) == [0, 1, 2]
    assert list(Processes(1, 2).positions(5)) == [1, 3]
